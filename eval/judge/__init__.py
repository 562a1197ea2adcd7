"""Which objects are in a picture, how many, where and in which colours, against what a prompt asks for.

Detectors of the files named here are registered.
"""

from brickwork.eval.judge import flat_ground, region_detector, transformers_detectors  # noqa: F401
