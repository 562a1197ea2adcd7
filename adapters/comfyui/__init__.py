"""ResAdapter nodes for ComfyUI.

Copy this folder into ComfyUI's `custom_nodes` and restart: it needs nothing that ComfyUI does not bring, and not the
rest of Brickwork. The library shares `names`, `reading` and `strength` with it, so they live here.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
