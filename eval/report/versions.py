"""The versions that a number was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("brickwork", "torch", "diffusers", "transformers", "torchmetrics", "accelerate", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Version of Python and of every library that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            versions[name] = "unknown"
    return versions
