"""Reference statistics: what generated pictures are measured against, with everything a number depends on.

A reference file is a `.safetensors` file: mean and covariance in float64, the features of every picture (for kernel
distances, manifold scores and nearest neighbours) and its hash; the metadata says which data, protocol and extractor.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from brickwork.eval.extractors.features import Extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import neighbour_radii
from brickwork.eval.metrics.feature_sets import FeatureSet, extract_features
from brickwork.eval.report.versions import library_versions
from brickwork.eval.sets.pictures import Preparation, open_image_set
from brickwork.files import digest, write_file

FORMAT = "brickwork-reference/1"

# What is read of a file's metadata.
_KEYS = {
    "": {"source": str, "count": int, "size": list, "data_sha256": str},
    "protocol": {"name": str, "description": str},
    "extractor": {"name": str, "label": str, "weights_sha256": str},
    "preparation": {"resolution": int | None, "filter": str | None},
}


@dataclass
class Reference:
    """Statistics and features of the real pictures.

    Attributes:
        info: Source, count, size, hashes, protocol, extractor, preparation, versions.
        statistics: Count, mean and covariance of `features` (and `spatial`).
        features: float32 `(count, dimension)`, or `None` if they were left out.
        digests: uint8 `(count, 32)`, SHA-256 of every picture.
    """

    info: dict
    statistics: dict[str, tuple[int, torch.Tensor, torch.Tensor]]
    features: torch.Tensor | None
    digests: torch.Tensor
    _radii: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.info["count"]

    def save(self, path: str | Path) -> None:
        """Write the file in one step."""
        from safetensors.torch import save_file

        tensors = {"digests": self.digests}
        if self.features is not None:
            tensors["features"] = self.features
        for name, (_, mean, covariance) in self.statistics.items():
            tensors[f"{name}.mean"], tensors[f"{name}.covariance"] = mean, covariance
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"brickwork": json.dumps(self.info)}
        write_file(Path(path), lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a file that `brickwork evaluate ref` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as stream:
                info = json.loads((stream.metadata() or {}).get("brickwork", "{}"))
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"reference: {path} cannot be read as a reference file: {error}") from error
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise ValueError(f"reference: {path} is no reference file; make one with `brickwork evaluate ref`")
        damaged = _damaged(info, tensors)
        if damaged is not None:
            raise ValueError(f"reference: {path} is damaged: {damaged}; make it anew with `brickwork evaluate ref`")
        statistics = {
            name: (info["count"], tensors[f"{name}.mean"], tensors[f"{name}.covariance"])
            for name in ("features", "spatial")
            if f"{name}.mean" in tensors
        }
        return cls(info, statistics, tensors.get("features"), tensors["digests"])

    def require_features(self) -> torch.Tensor:
        """The features, or an error that says how to get them."""
        if self.features is None:
            raise ValueError(
                "reference: the file holds no features, only their mean and covariance; make it without --no-features"
                " for kd and prdc"
            )
        return self.features

    def radii(self, *ks: int) -> torch.Tensor:
        """`neighbour_radii` of the features, computed once for all sets that are measured."""
        missing = tuple(sorted({k for k in ks if k not in self._radii}))
        if missing:
            self._radii.update(zip(missing, neighbour_radii(self.require_features(), missing).unbind(dim=1)))
        return torch.stack([self._radii[k] for k in ks], dim=1)

    @property
    def identity(self) -> str:
        """A short hash of the data, its preparation, the protocol and the extractor: equal for equal references."""
        keys = ("data_sha256", "count", "protocol", "extractor")
        return digest(json.dumps([self.info[key] for key in keys], sort_keys=True))[:16]


def _damaged(info: dict, tensors: dict[str, torch.Tensor]) -> str | None:
    """What is wrong with a reference file, by its key."""
    parts = {"": info} | {key: info.get(key) for key in ("protocol", "extractor", "preparation")}
    for part, keys in _KEYS.items():
        for key, kind in keys.items():
            value = parts[part].get(key) if isinstance(parts[part], dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                return f"`{f'{part}.{key}'.lstrip('.')}` is {str(value)[:60]!r}"
    count, widths = info["count"], {}
    for name in ("features", "spatial"):
        if f"{name}.mean" in tensors:
            (widths[name],) = tensors[f"{name}.mean"].shape if tensors[f"{name}.mean"].ndim == 1 else (-1,)
    shapes = {f"{name}.covariance": (width, width) for name, width in widths.items()} | {"digests": (count, 32)}
    shapes |= {"features": (count, widths.get("features"))} if "features" in tensors else {}
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            return f"the tensor {name!r} is {found}, not {shape}"
    return None if "features" in widths else "the tensor 'features.mean' is missing"


def make_reference(
    source: str | Path,
    extractor: Extractor,
    protocol: str,
    preparation: Preparation | None = None,
    limit: int | None = None,
    keep_features: bool = True,
    progress: bool = True,
) -> Reference:
    """Measure real pictures.

    Args:
        source: See `open_image_set`.
        extractor: The network, see `load_extractor`.
        protocol: A name of `PROTOCOLS`.
        preparation: How pictures are brought to the size that samples have.
        limit: Take the first so many.
        keep_features: Keep them row by row, for all metrics but the Fréchet distances.
        progress: Show a bar.
    """
    images = open_image_set(source, limit)
    preparation = preparation or Preparation()
    keep = ("features",) if keep_features else ()
    measured = extract_features(images, extractor, get_protocol(protocol), preparation, keep, progress)
    used = {"preparation": preparation, "protocol": get_protocol(protocol), "extractor": extractor}
    info = {"format": FORMAT, "source": str(source), **describe(measured), "versions": library_versions()}
    info |= {name: value.to_dict() for name, value in used.items()}
    return Reference(info, measured.statistics, measured.outputs.get("features"), measured.digests)


def describe(measured: FeatureSet) -> dict:
    """Count, size, hash and conversions of a measured set, as references and results store them."""
    return {
        "count": len(measured),
        "size": list(measured.inspection.size),
        "data_sha256": measured.data_sha256,
        "converted": measured.inspection.converted,
    }
