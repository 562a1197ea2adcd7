"""Sets of pictures, read once and one way."""

from brickwork.eval.sets.reader import Picture, Pictures, open_pictures

__all__ = ["Picture", "Pictures", "open_pictures"]
