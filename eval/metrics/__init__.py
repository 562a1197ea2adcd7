"""Metrics; those of the files named here are registered."""

from brickwork.eval.metrics import attributes, clip, judged, of_features, paired  # noqa: F401
