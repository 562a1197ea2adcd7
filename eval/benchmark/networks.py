"""What is benchmarked: our networks by name, the plain reference, and networks of diffusers of like size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn

import brickwork
from brickwork import compat
from brickwork.errors import advice
from brickwork.eval.benchmark.reference import PlainLego
from brickwork.eval.benchmark.timing import MatmulProbe
from brickwork.gen.convbn import set_convbn_mode
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.presets import LEGO_PRESETS, TRANSFORMER_PRESETS, network_of_preset
from brickwork.gen.presets import PRESETS as PRESETS_BY_NETWORK
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

NUM_CLASSES = 10
OURS, PLAIN, DIT, UNET = "ours", "plain reference", "DiTTransformer2DModel", "UNet2DModel"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRESETS = {name: config for presets in PRESETS_BY_NETWORK.values() for name, config in presets.items()}


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batch: images at once.
        rounds: how often everything is timed.
        device, dtype: names as in torch; training uses autocast below float32.
        threads: of torch on the CPU.
        compile: compile ours, the reference and diffusers' networks.
        size: side of the images, `None` for the training size.
        data: pictures held out from training, for the schedules' losses; `None` to go without.
        schedule: a file with the schedule that was searched; `None` to search, if there is `data`.
        budget: of the search, in shares of the full schedule's operations.
        pairs: pictures and noises the losses are measured on.
        steps: of the sampler, for the schedules.
        weights: whose schedules.
        seconds: by the clock on the wall, within which the suite `gpu` ends.
        pictures: in the shards that the suite `loader` reads.
        output: the benchmark's folder, where those shards lie.
        presets: whose precision is measured beside that of `weights`.
    """

    batch: int = 4
    rounds: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    compile: bool = False
    size: int | None = None
    data: str | None = None
    schedule: str | None = None
    budget: float = 0.6
    pairs: int = 64
    steps: int = 18
    weights: str = "lego-avatars-64"
    seconds: int = 450
    pictures: int = 100_000
    output: str = "benchmark"
    presets: Sequence[str] = ("lego-s-pg-64",)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def probe(self, side: int | None = None) -> MatmulProbe:
        """The machine's own rate in this number format."""
        return MatmulProbe(self.torch_device, self.torch_dtype, side)

    def ready(self, network: nn.Module) -> nn.Module:
        """A network to draw with, on the device and in the number format."""
        network = self.placed(network).eval()
        return network if self.dtype == "float32" else network.to(self.torch_dtype)

    def placed(self, network: nn.Module) -> nn.Module:
        """A network on the device; tensors without numbers cannot be moved, not even to where they are."""
        return network if self.device == "cpu" else network.to(self.torch_device)


@dataclass(frozen=True)
class Subject:
    """A network to run.

    Attributes:
        name: `OURS`, `PLAIN`, `DIT` or `UNET`.
        build: makes the network, with random numbers where fresh ones have zeros.
        run: `(network, sample, timestep, class_labels)` => its estimates, one or, for LEGO, one a brick.
        shape: of a sample, `(C, H, W)`.
        num_classes: of the network.
    """

    name: str
    build: Callable[[], nn.Module]
    run: Callable[..., list[torch.Tensor]]
    shape: tuple[int, int, int]
    num_classes: int

    def inputs(self, settings: Settings, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Sample, timestep and class labels of a batch."""
        batch, device = settings.batch, settings.torch_device
        sample = torch.randn((batch, *self.shape), generator=torch.Generator().manual_seed(0))
        labels = torch.arange(batch) % self.num_classes
        return sample.to(device, dtype), torch.linspace(-1, 1, batch).to(device), labels.to(device)


def subjects(name: str, size: int | None = None, peers: bool = True) -> dict[str, Subject]:
    """The network of a name, and for LEGO what it is compared with.

    Args:
        name: a preset, weights that ship, or a pipeline folder of LEGO.
        size: side of the images in pixels, by default the training size; the reference takes multiples of its windows.
        peers: with the plain reference and diffusers' networks.

    Returns:
        Subjects by name, ours first.
    """
    if network_of_preset(name) in ("BlockTransformer2DModel", "BlockUNet2DModel"):
        return {OURS: _block_network(name, size)}
    lego = _lego(name, size)
    if not peers:
        return {OURS: lego}
    with torch.device("meta"):
        network = lego.build()
    found = [lego, _plain(lego), _dit(network, lego), _unet(network, lego)]
    if any(lego.shape[1] % window for window in network.config.window_sizes):
        found.remove(found[1])
    return {subject.name: subject for subject in found}


def ours(name: str, settings: Settings) -> Subject:
    """The network of a name alone; see `subjects`."""
    return subjects(name, settings.size, peers=False)[OURS]


def _random(network: nn.Module) -> nn.Module:
    """Fill parameters that start as zeros, so that nothing is multiplied by zero."""
    for parameter in network.parameters():
        if not parameter.is_meta and not _is_fake(parameter) and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def _is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no numbers, only a shape (see `eval.benchmark_memory.derive_memory`)."""
    return isinstance(tensor.data, compat.fake_tensors()[1])


def _readable(labels: torch.Tensor) -> torch.Tensor | None:
    """Labels for networks that check their values; "no class" for fake ones, which runs the same layers."""
    return None if _is_fake(labels) else labels


def _lego(name: str, size: int | None) -> Subject:
    """By its configuration alone: how fast a network is does not depend on its weights."""
    if name in LEGO_PRESETS:
        config = {**LEGO_PRESETS[name], "in_channels": 3, "num_classes": NUM_CLASSES}
    else:
        config = _saved_config(name)
    side, classes = size or config["sample_size"], config["num_classes"] or 0

    def run(network, sample, timestep, labels) -> list[torch.Tensor]:
        given = _readable(labels) if classes else None
        return network(sample, timestep, given, return_intermediates=True).intermediates

    def build() -> nn.Module:
        return _random(LegoTransformer2DModel.from_config(config))

    return Subject(OURS, build, run, (config["in_channels"], side, side), max(classes, 1))


def _saved_config(name: str) -> dict:
    folder = brickwork.pretrained(name) if name in brickwork.pretrained_names() else Path(name)
    if not (folder / "transformer" / "config.json").is_file():
        known = [*PRESETS, *brickwork.pretrained_names()]
        raise ValueError(f"`name` is {name!r}, which is no preset and holds no LEGO network; {advice(name, known)}")
    config = LegoTransformer2DModel.load_config(folder, subfolder="transformer")
    if config.get("_class_name") != LegoTransformer2DModel.__name__:
        raise ValueError(f"`name` is {name!r}, which holds a {config.get('_class_name')}; give a LEGO pipeline.")
    return config


def _plain(ours: Subject) -> Subject:
    def run(network, sample, timestep, labels) -> list[torch.Tensor]:
        return network(sample, timestep, labels if network.num_classes else None)

    return Subject(PLAIN, lambda: PlainLego(ours.build()), run, ours.shape, ours.num_classes)


def _dit(network: LegoTransformer2DModel, ours: Subject) -> Subject:
    """diffusers' DiT of the same width, heads and number of blocks, with the smallest patch of the stack."""
    config = network.config
    width = max(brick.patch_embed.out_features for brick in network.bricks)
    heads = max(brick.blocks[0].attn.num_attention_heads for brick in network.bricks)
    settings = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": config.in_channels,
        "num_layers": sum(config.num_layers),
        "sample_size": ours.shape[1],
        "patch_size": min(config.patch_sizes),
        "num_embeds_ada_norm": ours.num_classes,
    }

    def run(network, sample, timestep, labels) -> list[torch.Tensor]:
        return [network(sample, timestep.expand(len(sample)), labels, return_dict=False)[0]]

    return Subject(DIT, lambda: _random(DiTTransformer2DModel(**settings)), run, ours.shape, ours.num_classes)


def _unet(network: LegoTransformer2DModel, ours: Subject) -> Subject:
    """diffusers' UNet of about as many parameters: three stages, attention in the lower two."""

    def make(channels: int) -> UNet2DModel:
        return UNet2DModel(
            sample_size=ours.shape[1],
            in_channels=ours.shape[0],
            out_channels=ours.shape[0],
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(channels, 2 * channels, 2 * channels),
            attention_head_dim=32,
            num_class_embeds=ours.num_classes + 1,
        )

    with torch.device("meta"):
        parameters = sum(p.numel() for p in make(64).parameters())
    wanted = sum(p.numel() for p in network.parameters())
    channels = max(32, 32 * round(64 * (wanted / parameters) ** 0.5 / 32))

    def run(network, sample, timestep, labels) -> list[torch.Tensor]:
        return [network(sample, timestep, labels, return_dict=False)[0]]

    return Subject(UNET, lambda: _random(make(channels)), run, ours.shape, ours.num_classes)


def _block_network(name: str, size: int | None) -> Subject:
    transformer = name in TRANSFORMER_PRESETS
    side, channels = size or (32 if transformer else 64), 4 if transformer else 3

    def build() -> nn.Module:
        model_class = BlockTransformer2DModel if transformer else BlockUNet2DModel
        settings = {"in_channels": channels, "num_classes": NUM_CLASSES, "sample_size": side}
        return _random(model_class.from_preset(name, **settings))

    def run(network, sample, timestep, labels) -> list[torch.Tensor]:
        return [network(sample, timestep, class_labels=_readable(labels)).sample]

    return Subject(OURS, build, run, (channels, side, side), NUM_CLASSES)


def forward_of(subject: Subject, network: nn.Module, settings: Settings) -> Callable[[], list[torch.Tensor]]:
    """A function that runs the network once, without gradients."""
    inputs = subject.inputs(settings, settings.torch_dtype)

    @torch.no_grad()
    def forward() -> list[torch.Tensor]:
        return subject.run(network, *inputs)

    return forward


def step_of(subject: Subject, network: nn.Module, settings: Settings) -> Callable[[], None]:
    """A function that runs a training step's forward and backward pass, every estimate with its loss.

    The weights are float32, other formats come by autocast.
    """
    device, dtype = settings.torch_device, settings.torch_dtype
    inputs = subject.inputs(settings, torch.float32)
    if device.type == "cpu" and dtype != torch.float32 and hasattr(network, "set_attention_backend"):
        # The backward pass of the CPU's fused attention is 20 times as slow as matrix products there.
        network.set_attention_backend("_native_math")

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            estimates = subject.run(network, *inputs)
            loss = sum(estimate.float().square().mean() for estimate in estimates) / len(estimates)
        del estimates
        loss.backward()

    return step


def training_step(specification: dict) -> tuple[nn.Module, Callable[[], None]]:
    """A network in training mode and its step, from JSON values.

    Args:
        specification: `name` as for `subjects`, `subject`, some of `Settings`; where it matters `convbn_mode`, see
            `set_convbn_mode`.
    """
    named = {"name", "subject", "convbn_mode"}
    settings = Settings(**{key: value for key, value in specification.items() if key not in named})
    peers = specification["subject"] != OURS
    subject = subjects(specification["name"], settings.size, peers)[specification["subject"]]
    network = settings.placed(subject.build().train())
    if specification.get("convbn_mode"):
        set_convbn_mode(network, specification["convbn_mode"])
    return network, step_of(subject, network, settings)


def sampling_of(subject: Subject, network: nn.Module, settings: Settings, steps: int) -> Callable[..., object]:
    """A function that draws a batch with EDM's Heun sampler.

    For ours it is the pipeline's own call and takes a `schedule`; for the others the bare loop.
    """
    batch = settings.batch
    labels = [number % subject.num_classes for number in range(batch)]
    if hasattr(network, "subnets"):
        kind = LegoPipeline if isinstance(network, LegoTransformer2DModel) else ClassToImagePipeline
        pipe = kind(network, EDMHeunScheduler())
        pipe.set_progress_bar_config(disable=True)
        labels = labels if network.config.num_classes else None

        def draw(schedule=None):
            generators = [torch.Generator().manual_seed(number) for number in range(batch)]
            return pipe(
                labels,
                *subject.shape[1:],
                num_inference_steps=steps,
                generator=generators,
                output_type="latent",
                **{pipe.schedule_name: schedule},
            )

        return draw
    noise, _, classes = subject.inputs(settings, torch.float32)
    scheduler = EDMHeunScheduler()

    @torch.no_grad()
    def loop() -> torch.Tensor:
        scheduler.set_timesteps(steps, device=settings.torch_device)
        sample = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep).to(settings.torch_dtype)
            output = subject.run(network, scaled, timestep.expand(batch).float(), classes)[-1]
            sample = scheduler.step(output.float(), timestep, sample).prev_sample
        return sample

    return loop
