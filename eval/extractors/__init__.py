"""Feature extractors; those of the files named here are registered."""

from brickwork.eval.extractors import attributes, efficientnet, inception, vision_models  # noqa: F401
