"""What a frozen network makes of a data set, computed once: latents of a VAE, or embeddings of captions.

A cache is a folder of safetensors files and a JSON index with fingerprints of the data and of the network that made
it, and is refused when either differs. Of latents the moments are kept (mean and logarithm of the variance), not one
sample of them, so that every epoch draws anew, as training without a cache would.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from brickwork.files import new_folder, write_json
from brickwork.pipelines import latents
from brickwork.training.data.images import LabelledImages, to_unit_range

INDEX = "index.json"
MAKER = "brickwork data cache"
ROWS_A_FILE = 1024
FIX = "build it with `brickwork data cache`"
# What transformers notes as it saves and loads; where a network came from changes nothing that it computes.
_NOT_COMPUTED_WITH = ("architectures", "dtype", "transformers_version")


def network_fingerprint(network: torch.nn.Module) -> str:
    """A digest of a network's class, configuration and weights, of diffusers or transformers."""
    config = getattr(network, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    config = {key: value for key, value in config.items() if key[0] != "_" and key not in _NOT_COMPUTED_WITH}
    text = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{type(network).__name__} {text}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_cache(
    folder: str | Path,
    number: int,
    compute: Callable[[int], dict[str, torch.Tensor]],
    fingerprint: dict[str, str],
    source: str = "",
    overwrite: bool = False,
) -> Path:
    """Compute and write a cache; it appears complete or not at all.

    Args:
        folder: of the cache.
        number: of rows.
        compute: row => tensors by name.
        fingerprint: what the cache depends on, such as `{"data": …, "network": …}`.
        source: where the network came from.
        overwrite: replace an earlier cache.

    Raises:
        ValueError: for a folder that holds something else, or a cache where `overwrite` is false.
    """
    if number < 1:
        raise ValueError(f"`number` is {number}; a cache needs at least one row.")
    with new_folder(folder, MAKER, overwrite=overwrite, argument="folder") as making:
        for first in range(0, number, ROWS_A_FILE):
            tensors = {}
            for row in range(first, min(first + ROWS_A_FILE, number)):
                computed = compute(row)
                tensors |= {f"{row}|{name}": value.contiguous() for name, value in computed.items()}
            save_file(tensors, making / f"rows-{first // ROWS_A_FILE:05d}.safetensors")
        index = {"rows": number, "names": sorted(computed), "source": source, "fingerprint": fingerprint}
        write_json(making / INDEX, index)
    return Path(folder)


class TensorCache:
    """A cache to read from; files stay mapped, so rows come from the page cache.

    Args:
        folder: of the cache.
        fingerprint: what the cache must have been made from; entries left out are not compared.
        fix: how to have it made, for errors.

    Raises:
        ValueError: for a folder without a cache, or one made from something else, naming what differs.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, str] | None = None, fix: str = FIX):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text())
        except (OSError, ValueError, RecursionError):
            raise ValueError(f"{str(self.folder)!r} holds no cache; {fix}.") from None
        self.rows, self.names, self.fingerprint = index["rows"], index["names"], index["fingerprint"]
        self.source = index["source"]
        stale = [name for name, value in (fingerprint or {}).items() if self.fingerprint.get(name) != value]
        if stale:
            raise ValueError(
                f"The cache {str(self.folder)!r} is stale: its {' and '.join(stale)} differ from what it was made "
                f"from; {fix}."
            )
        self._files: dict[tuple[int, int], object] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """The tensors of a row, by name."""
        number = row // ROWS_A_FILE
        key = (os.getpid(), number)  # a worker opens its own
        if key not in self._files:
            file = self.folder / f"rows-{number:05d}.safetensors"
            self._files[key] = safe_open(file, framework="pt")
        return {name: self._files[key].get_tensor(f"{row}|{name}") for name in self.names}


@torch.no_grad()
def cache_latents(
    folder: str | Path, images: LabelledImages, vae: torch.nn.Module, source: str = "", overwrite: bool = False
) -> Path:
    """Write the moments of a VAE's latents of every picture, each in the shape of its bucket.

    Args:
        folder: of the cache.
        images: pictures; broken ones raise `BrokenImage`, so check the data first.
        vae: an `AutoencoderKL`.
        source: where the VAE came from, for pipelines built on the cache.
        overwrite: replace an earlier cache.
    """
    vae = vae.eval()

    def moments(row: int) -> dict[str, torch.Tensor]:
        picture = torch.from_numpy(to_unit_range(images.picture(row)))[None].to(vae.device)
        mean, logvar = latents.moments(vae, picture)
        return {"mean": mean[0].cpu(), "logvar": logvar[0].cpu()}

    return build_cache(folder, len(images), moments, latent_fingerprint(images, vae), source, overwrite)


def latent_fingerprint(images: LabelledImages, vae: torch.nn.Module) -> dict[str, str]:
    """What cached latents depend on."""
    return {
        "data": f"{images.fingerprint} {images.content_digest()}",
        "network": network_fingerprint(vae),
    }


class CachedLatents:
    """A data set whose samples are cached latents, in the place of `LabelledImages`.

    Args:
        images: the pictures that the cache was made of; labels, groups and buckets are theirs.
        cache: their moments.
        vae: the VAE, for its scale; the cache must have been made by it.

    Raises:
        ValueError: for a stale cache.
    """

    def __init__(self, images: LabelledImages, folder: str | Path, vae: torch.nn.Module):
        self.images, self.vae = images, vae
        self.cache = TensorCache(folder, latent_fingerprint(images, vae))
        self.labels, self.class_names, self.buckets = images.labels, images.class_names, images.buckets
        self.table, self.shapes, self.split = images.table, images.shapes, images.split
        self.channels, self.size = self.cache[0]["mean"].shape[0], self.cache[0]["mean"].shape[-1]

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.images.fingerprint} {self.cache.fingerprint}".encode()).hexdigest()

    def sample(self, row: int, random: np.random.Generator) -> tuple[np.ndarray, int]:
        """A draw from the latent's distribution, scaled, float32 `(C, h, w)`, and the label."""
        mean, logvar = (self.cache[row][name][None] for name in ("mean", "logvar"))
        normal = torch.from_numpy(random.standard_normal(tuple(mean.shape), dtype=np.float32))
        return latents.draw(self.vae, mean, logvar, normal)[0].numpy(), int(self.labels[row])

    def still(self, row: int) -> np.ndarray:
        """The mean of the distribution, scaled, float32 `(C, h, w)`."""
        return latents.scale(self.vae, self.cache[row]["mean"][None])[0].numpy()
