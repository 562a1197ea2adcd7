"""The task of `train_resadapter.py`: a ResAdapter is put into a UNet, trained, and written as its users load it.

Paper: arXiv 2403.02084; its training code was never released. The base is frozen; trained are a LoRA on the down- and
upsampler convolutions (PEFT's, whose result is exactly what the files mean) and the norms of the ResNet blocks, in
place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from brickwork.adapters.comfyui.reading import LowRank, ResAdapterWeights
from brickwork.adapters.resadapter.base_norms import own_norm
from brickwork.adapters.resadapter.formats import to_differences, write_adapter
from brickwork.adapters.resadapter.functions import family_of, load_resadapter, unload_resadapter
from brickwork.adapters.resadapter.inject import adaptable_shapes
from brickwork.adapters.resadapter.transaction import loaded_adapters
from brickwork.errors import explained
from brickwork.training.config.adapter import AdapterConfig
from brickwork.training.config.data import ResolutionConfig
from brickwork.training.config.latent import ResAdapterConfig
from brickwork.training.engine.checkpoints import gathered, trained_tensors
from brickwork.training.tasks.latent.encoding import freeze_unet
from brickwork.training.tasks.latent.task import LatentTask, drop_text_encoders

# The other processes wait while one fills the cache.
CACHE_TIME = timedelta(hours=12)
NAME, FOLDER, OFFICIAL = "resadapter", "adapter", "official"
DEFAULT_RANK = 16


@dataclass
class ResAdapterInTraining:
    """The trained part of a UNet.

    Attributes:
        unet: the network.
        alphas: alpha of the LoRA on each convolution, by path; empty without LoRA.
        base_norms: the base's own norms by name, float32 on the CPU; empty where they are not trained.
        info: what the files say of themselves.
    """

    unet: torch.nn.Module
    alphas: dict[str, float]
    base_norms: dict[str, torch.Tensor]
    info: dict

    def adapter(self, weights: dict[str, torch.Tensor]) -> ResAdapterWeights:
        """The adapter that trained tensors make, by their names in the UNet."""
        convs = {
            path: LowRank(
                weights[f"{path}.lora_A.{NAME}.weight"],
                weights[f"{path}.lora_B.{NAME}.weight"],
                torch.tensor(alpha),
            )
            for path, alpha in self.alphas.items()
        }
        return ResAdapterWeights(convs, {key: weights[key] for key in self.base_norms}, info=self.info)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The UNet as the base is, bit for bit; leaving puts back what was there."""
        names = [f"{path}.lora_B.{NAME}.weight" for path in self.alphas]
        parameters = {name: self.unet.get_parameter(name) for name in (*names, *self.base_norms)}
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self.base_norms[name]) if name in self.base_norms else parameter.zero_()
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(kept[name])

    def write(self, weights: dict[str, torch.Tensor], folder: Path) -> tuple[Path, Path]:
        """Write the authors' two files, and the one file for ComfyUI, Forge and A1111, in place of earlier ones.

        Args:
            weights: trained tensors, or their averages.
            folder: of the run.

        Returns:
            The folder of the two, and the one.
        """
        adapter = self.adapter(weights)
        official, single = folder / FOLDER / OFFICIAL, folder / FOLDER / f"{folder.name}.safetensors"
        write_adapter(adapter, official, "official", overwrite=True)
        write_adapter(to_differences(adapter, self.base_norms), single, "comfyui", overwrite=True)
        return official, single


def add_resadapter(
    unet: torch.nn.Module, settings: AdapterConfig, resolution: ResolutionConfig, base: str
) -> ResAdapterInTraining:
    """Put a fresh ResAdapter, or one to go on from, into a frozen UNet; its parameters are float32 and trainable.

    A fresh one changes nothing yet: its LoRA ends in zeros and its norms are the base's.

    Args:
        unet: of the pipeline, frozen.
        settings: what of it is trained, and from where.
        resolution: that it learns, and `base`, the pipeline's name: for what its files say of themselves.

    Raises:
        ValueError: for an adapter to start from that cannot be read, does not fit this UNet, lacks what is to be
            trained, or has another rank or alpha than the configuration.
    """
    shapes = adaptable_shapes(unet)
    paths = [name for name, shape in shapes.items() if len(shape) == 2]
    keys = [name for name, shape in shapes.items() if len(shape) == 1]
    base_norms = {key: own_norm(unet, key).float() for key in keys} if settings.kind != "interpolation" else {}
    convs, norms = starting_point(unet, settings) if settings.init_from else ({}, {})
    info, alphas = describe(unet, settings.kind, resolution, base), {}
    if settings.kind != "extrapolation":
        ranks, alphas = ranks_and_alphas(settings, paths, convs)
        _add_lora(unet, ranks, alphas, convs)
        info["rank"] = max(ranks.values())
    if base_norms:
        # torch's CPU kernel for the gradient of a group norm's weight reads outside its memory where the input is
        # in channels-last order and has no gradient itself.
        unet.conv_in.register_forward_hook(lambda *call: call[-1].requires_grad_(torch.is_grad_enabled()))
    for key in base_norms:
        parameter = unet.get_parameter(key)
        parameter.data = norms.get(key, parameter.detach()).to(parameter.device, torch.float32)
        parameter.requires_grad_(True)
    return ResAdapterInTraining(unet, alphas, base_norms, info)


def _add_lora(unet, ranks: dict[str, int], alphas: dict[str, float], start: dict[str, LowRank]) -> None:
    first = next(iter(ranks))
    unet.add_adapter(
        LoraConfig(
            r=ranks[first],
            lora_alpha=alphas[first],
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern=alphas,
        ),  # fmt: skip
        NAME,
    )
    for path in ranks:
        layer = unet.get_submodule(path)
        if not isinstance(layer, LoraLayer) or layer.scaling[NAME] != alphas[path] / ranks[path]:
            raise ValueError(f"PEFT put no LoRA of the wanted strength on {path}; is its version supported?")
        for part, value in (("lora_A", "down"), ("lora_B", "up")):
            weight = getattr(layer, part)[NAME].weight
            given = getattr(start[path], value) if path in start else weight
            weight.data = given.detach().to(weight.device, torch.float32)


def starting_point(
    unet: torch.nn.Module, settings: AdapterConfig
) -> tuple[dict[str, LowRank], dict[str, torch.Tensor]]:
    """The LoRA by path and the absolute norms by name of the adapter to start from, checked by loading it."""
    with explained("`adapter.init_from` cannot be taken", ValueError):
        load_resadapter(unet, settings.init_from, NAME, norm_mode=settings.norm_mode, base_model=settings.base_model)
    loaded = loaded_adapters(unet)[NAME]
    unload_resadapter(unet, NAME)
    norms = {key: (own_norm(unet, key).double() + delta).float() for key, delta in loaded.deltas.items()}
    wanted = {"interpolation": [loaded.adapter.convs], "extrapolation": [norms]}
    for part in wanted.get(settings.kind, [loaded.adapter.convs, norms]):
        if not part:
            lacking = "norms" if part is norms else "LoRA"
            raise ValueError(
                f"`adapter.init_from` is {settings.init_from!r}, which has no {lacking}, but `adapter.kind` is "
                f"{settings.kind!r}; set that to what it has."
            )
    return loaded.adapter.convs, norms


def ranks_and_alphas(
    settings: AdapterConfig, paths: list[str], start: dict[str, LowRank]
) -> tuple[dict[str, int], dict[str, float]]:
    """Rank and alpha of each convolution's LoRA: the configuration's, or those of the adapter to start from."""
    if not start:
        rank = settings.rank or DEFAULT_RANK
        return dict.fromkeys(paths, rank), dict.fromkeys(paths, settings.alpha or rank / 2)
    ranks = {path: start[path].rank for path in paths}
    alphas = {path: start[path].factor * start[path].rank for path in paths}
    for name, given, found in (("rank", settings.rank, ranks), ("alpha", settings.alpha, alphas)):
        if given is not None and set(found.values()) != {given}:
            raise ValueError(
                f"`adapter.{name}` is {given:g}, but {settings.init_from!r} has {sorted(set(found.values()))}; leave "
                "it null to take that."
            )
    return ranks, alphas


def describe(unet: torch.nn.Module, kind: str, resolution: ResolutionConfig, base: str) -> dict:
    """What the files say of themselves, as JSON values."""
    info = {
        "base": Path(base).resolve().name if Path(base).is_dir() else base,
        "kind": kind,
        "range": resolution.model_dump(include={"min_size", "max_size"}) | {"max_ratio": resolution.max_aspect},
        "trainer": f"brickwork {metadata.version('brickwork')}",
    }
    if family := family_of(unet):
        info["family"] = family
    return info


def trained_weights(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, as it is now, on the CPU."""
    return {name: gathered(tensor) for name, tensor in trained_tensors(unet).items()}


class ResAdapterTask(LatentTask):
    """Stable Diffusion learns to draw at sizes that it was not trained for.

    Attributes:
        adapter: what is trained.
    """

    configuration, sections = ResAdapterConfig, (*LatentTask.sections, "adapter")
    adapter: ResAdapterInTraining

    @staticmethod
    def handlers(config: ResAdapterConfig) -> list[Any]:
        return [InitProcessGroupKwargs(timeout=CACHE_TIME)]

    @classmethod
    def build(cls, config: ResAdapterConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        # A long caption is named once, in the plan, and not whenever it is drawn.
        diffusers.utils.logging.set_verbosity_error()
        task = cls(config, accelerator, config.run.mixed_precision)
        pipeline = task.base
        freeze_unet(pipeline.unet, config.run.mixed_precision)
        task.network = pipeline.unet.to(accelerator.device)
        task.adapter = add_resadapter(pipeline.unet, config.adapter, config.resolution, config.model.base)
        task.finish(use_cache=not dry_run, baseline=task.adapter.switched_off)
        if task.stream.cache is not None:
            drop_text_encoders(pipeline)
        return task

    def preview(self, images: int, log: Any) -> None:
        """Show what the averaged adapter can do, and leave it as files that can be tried."""
        weights = trained_weights(self.network)
        if self.accelerator.is_main_process:
            self.adapter.write(weights, Path(self.config.run.output_dir))
        super().preview(images, log)

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Leave the averaged adapter."""
        if self.accelerator.is_main_process:
            official, single = self.adapter.write(weights, folder)
            self.accelerator.print(
                f"The adapter is in {official} (load_resadapter), and for ComfyUI, Forge and A1111 in {single}."
            )
