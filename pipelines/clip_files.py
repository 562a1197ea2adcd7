"""Clips as files: GIF and WebP by Pillow, MP4 by PyAV or imageio where one of them is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from brickwork.errors import one_of
from brickwork.files import write_file

SUFFIXES = (".gif", ".webp", ".mp4")


def write_clip(frames: Sequence[Image.Image], path: str | Path, fps: float, comment: str = "") -> Path:
    """Write frames of one size as a file that plays them over and over.

    Args:
        frames: RGB pictures.
        path: whose ending says how: `.gif` (256 colours, and times in steps of 10 ms), `.webp` (lossless) or `.mp4`.
        fps: frames a second.
        comment: noted in a GIF, such as what made it.

    Raises:
        ValueError: for another ending, no frames, frames of several sizes, or an MP4 where nothing can write one.
    """
    path = Path(path)
    one_of("path", path.suffix.lower(), SUFFIXES)
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1 or not fps > 0:
        raise ValueError(
            f"`frames` has sizes {sorted(sizes)} and `fps` is {fps}; give frames of one size, and fps > 0."
        )
    if path.suffix.lower() == ".mp4":
        return write_file(path, lambda part: _write_mp4(frames, part, fps))
    webp, gif = {"lossless": True}, {"optimize": False, "comment": comment.encode()}
    further = webp if path.suffix.lower() == ".webp" else gif
    times = {"duration": round(1000 / fps), "loop": 0}
    first, *rest = [frame.convert("RGB") for frame in frames]
    return write_file(path, lambda part: first.save(part, save_all=True, append_images=rest, **times, **further))


def _write_mp4(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    if find_spec("av"):
        import av

        with av.open(str(path), "w") as file:
            stream = file.add_stream("mpeg4" if "libx264" not in av.codecs_available else "libx264", rate=round(fps))
            stream.width, stream.height = frames[0].size
            even = not (stream.width % 2 or stream.height % 2)
            stream.pix_fmt = "yuv420p" if even else "yuv444p"
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_image(frame.convert("RGB"))))
            file.mux(stream.encode())
    elif find_spec("imageio") and find_spec("imageio_ffmpeg"):
        import imageio

        pictures = [np.asarray(frame.convert("RGB")) for frame in frames]
        imageio.mimwrite(path, pictures, fps=fps, macro_block_size=1)
    else:
        raise ValueError(
            "`path` ends in .mp4, which needs PyAV or imageio: pip install 'brickwork[video]'; or write .gif or .webp."
        )
