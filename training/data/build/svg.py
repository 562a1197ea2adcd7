"""SVG drawings as pictures, by resvg-py."""

import importlib.util


def require_rasteriser() -> None:
    """Raises `ValueError` where resvg-py is missing, with what to install."""
    if importlib.util.find_spec("resvg_py") is None:
        raise ValueError("resvg-py, which rasterises SVG drawings, is missing: pip install 'brickwork[build]'.")


def rasterise(svg: str, size: int) -> bytes:
    """A square SVG as a PNG of `size`×`size` pixels with transparency, drawn at that size and not resized to it."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
