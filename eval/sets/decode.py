"""From the bytes of a picture to upright 8-bit RGB: what depths, colours, turns and transparency mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

# What is taken for a picture, in any case of letters.
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico", ".icns", ".qoi", ".mpo",
)  # fmt: skip
# A header that claims more is taken for a decompression bomb; Pillow's own limit.
MAX_PIXELS = 2 * 89_478_485
_ORIENTATION = 0x0112  # in EXIF


class BrokenPicture(ValueError):
    """A picture that cannot be read, or that means no colours."""


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn every error of a decoder into a `BrokenPicture`."""
    try:
        yield
    except BrokenPicture:
        raise
    except Exception as error:  # decoders raise errors of many kinds
        raise BrokenPicture(f"{error}" or type(error).__name__) from error


def open_upright(value: Any) -> Image.Image:
    """A picture, turned as its EXIF says, and not decoded yet unless it had to be turned.

    Args:
        value: bytes, a path, or `{"bytes": …, "path": …}` as `datasets` has it.

    Raises:
        BrokenPicture: where there is none.
    """
    if isinstance(value, dict):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if not isinstance(value, (bytes, str, Path)):
        raise BrokenPicture("there is no picture")
    with _decoding():
        image = Image.open(BytesIO(value) if isinstance(value, bytes) else value)
        if image.width * image.height > MAX_PIXELS:
            raise BrokenPicture(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}, as bombs have")
        if _is_turned(image):
            ImageOps.exif_transpose(image, in_place=True)
            image.info["turned"] = True
        return image


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block says nothing, and the picture may be sound
        return False


def kinds_of(image: Image.Image) -> list[str]:
    """What of a picture of `open_upright` is not plain: its depth, colours, transparency, turn, further frames."""
    kinds = {
        "1": "one bit", "L": "grey", "LA": "grey", "La": "grey", "P": "palette", "PA": "palette", "F": "floats",
    }  # fmt: skip
    kind = "integers of 16 or 32 bits" if image.mode.startswith("I") else kinds.get(image.mode)
    kind = kind or (None if image.mode in ("RGB", "RGBA", "RGBa") else image.mode)
    clear = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    further = getattr(image, "n_frames", 1) > 1
    found = (kind, clear and "transparent", image.info.get("turned") and "turned", further and "several frames")
    return [name for name in found if name]


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any mode => 8-bit RGB.

    One bit becomes 0 or 255; integers of 16 bits, and of 32 bits up to 65535, are divided by 257; floats from 0 to 1
    are multiplied by 255, and taken as they are where some lie above 1 and none above 255. Transparent pictures are
    laid on the background.

    Args:
        image: decoded or not.
        background: a colour as Pillow knows it, such as `"white"` or `"#80ff00"`.

    Raises:
        BrokenPicture: for pixels that cannot be decoded, and numbers outside of those ranges.
    """
    with _decoding():
        if image.mode == "RGB" and "transparency" not in image.info:
            image.load()
            return image
        if image.mode == "F" or image.mode.startswith("I"):
            return _from_numbers(image, background)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
            image = (image.convert(straight) if straight else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
        return image.convert("RGB")


def crop_to(image: Image.Image, height: int, width: int, resample: int = Image.Resampling.LANCZOS) -> np.ndarray:
    """The largest centred part of that aspect ratio, resized to uint8 `(height, width, 3)`."""
    crop_width = min(image.width, image.height * width / height)
    crop_height = min(image.height, image.width * height / width)
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(to_rgb(image).resize((width, height), resample, box=box))


def _from_numbers(image: Image.Image, background: str) -> Image.Image:
    """Deep grey pictures, whose numbers Pillow would cut off at 255."""
    numbers = np.asarray(image)
    if not np.isfinite(numbers).all() or numbers.min(initial=0) < 0:
        raise BrokenPicture("its numbers are negative or not finite; give 0 to 65535, or floats from 0 to 1 or 255")
    largest = float(numbers.max(initial=0))
    if image.mode != "F":
        if largest > 65535:
            raise BrokenPicture(f"its integers go up to {largest:,.0f}; give at most 65535")
        grey = numbers / 257
    elif largest > 255:
        raise BrokenPicture(f"its floats go up to {largest:g}; give 0 to 1, or 0 to 255")
    else:
        grey = numbers * 255 if largest <= 1 else numbers
    rgb = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        rgb[numbers == clear] = ImageColor.getrgb(background)[:3]
    return Image.fromarray(rgb)


def check_background(background: str) -> str:
    """The colour itself; a `ValueError` for what Pillow does not know as one."""
    try:
        ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"`background` is {background!r}; give a colour by name or as '#rrggbb', such as 'white'."
        ) from None
    return background
