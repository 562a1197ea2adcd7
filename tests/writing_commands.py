"""Every command that writes, on inputs so small that it takes about a second: for tests that kill or starve them.

`make_inputs` makes what they read (a trained run, its pipeline, samples, a result, checkpoints of other authors);
`COMMANDS` says how each is called and what it writes. A command that writes gets one entry here; one that does not is
named in `READ_ONLY`.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from forks import LONGEST, ForkedCell
from PIL import Image

import brickwork
from brickwork import cli

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / "emoji" / "sample.parquet"
MINIATURE = brickwork.pretrained("avatars-sd-64")
FACES = [f"data.source={SAMPLE}", "data.classes=[Smileys & Emotion]", "data.group_column=codepoints", "data.size=16"]
FACES += ["data.held_out=0.2"]
LEGO = {"window_sizes": [16, 8], "patch_sizes": [4, 2], "num_layers": [1, 1], "hidden_sizes": 8}
LEGO["num_attention_heads"] = 2
# What writes nothing, or nothing at a place that it is given; `app` draws through the pipelines, one file at a time.
READ_ONLY = {"app", "completion", "env", "evaluate compare", "info", "plan"}


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        arguments: its words, given the folder of inputs and the one that it works in.
        output: what it writes there.
        again: what is added where an earlier output is there; `None` where it is refused then, or goes on.
        grows: whether files come one by one, each whole.
        equal: how far an output is the same every time: in its `bytes`, in the `names` of its files, or `nothing`.
        stand_ins: puts them in the place of programs of others and of what is slow; called in a process of its own.
    """

    arguments: Callable[[Path, Path], list[str]]
    output: str = "out"
    again: tuple[str, ...] | None = ("--overwrite",)
    grows: bool = False
    equal: str = "bytes"
    stand_ins: Callable[[], None] = lambda: None


def words(text: str, *further: str) -> Callable[[Path, Path], list[str]]:
    """Words of a command line in which IN and OUT stand for the two folders."""

    def fill(inputs: Path, place: Path) -> list[str]:
        names = {"IN": str(inputs), "OUT": str(place), "SAMPLE": str(SAMPLE), "SD": str(MINIATURE)}

        def put(word: str) -> str:
            for name, value in names.items():
                word = word.replace(name, value)
            return word

        return [*map(put, text.split()), *map(put, further)]

    return fill


# --- stand-ins


def tiny_emoji_packages() -> None:
    """The npm packages of the emoji, three drawings of them, lie in IN/packages."""
    from brickwork.training.data.build import emoji

    folder = Path(os.environ["BRICKWORK_TEST_PACKAGES"])
    digests = {
        kind: replace(package, sha512=hashlib.sha512((folder / package.tarball).read_bytes()).hexdigest())
        for kind, package in vars(emoji.SOURCES).items()
    }
    emoji.build_emoji.__kwdefaults__["sources"] = emoji.Sources(**digests)


def no_dicebear() -> None:
    """Avatars are their grounds alone, without Node."""
    from brickwork.training.data.build import avatar_files

    described = json.loads((DATA / "avatars" / "styles.json").read_text())

    def draw(style: str, options: dict) -> str:
        ground = f'<rect width="9" height="9" fill="#{options["backgroundColor"][0]}"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{ground}</svg>'

    @contextlib.contextmanager
    def artist(folder, styles):
        yield SimpleNamespace(styles={style: described[style] for style in styles}, draw=draw)

    avatar_files.install = avatar_files.require_programs = lambda *_: None
    avatar_files.artist = artist


def small_extractor() -> None:
    """Four features in the place of those of EfficientNet-Lite0."""
    from brickwork.eval.extractors import features
    from brickwork.training.studies import battle, trained

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1)
        )
    for module in (features, trained, battle):
        module.load_extractor = lambda *_: features.from_module(network, "Small", 16, name="small")


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Afterwards the modules in which there are stand-ins are as they were: other tests run in this process."""
    from brickwork.eval.extractors import features
    from brickwork.training.commands import publish
    from brickwork.training.studies import battle, trained

    before = [(module, dict(vars(module))) for module in (features, publish, battle, trained)]
    try:
        yield
    finally:
        for module, names in before:
            vars(module).update(names)


def one_size() -> None:
    """The demo of the ResAdapter draws one size."""
    from brickwork.eval.commands import demo_resadapter

    demo_resadapter.SIZES = ((32, 32),)


def few_samples() -> None:
    """A card shows four samples of one step."""
    from brickwork.training.commands import publish

    publish.CARD_SAMPLES, publish.STEPS = 4, 1


def cells_in_forks() -> None:
    """Cells of a study are forked, and their memory is not measured."""
    from brickwork.eval.studies.core import processes
    from brickwork.training.studies import timed

    small_extractor()
    processes.Popen = ForkedCell
    timed.peak_during = lambda function, device: function() or {"peak": 2**20}


# --- the commands

_BATTLE = {
    "networks": {
        "unet": {
            "label": "UNet2DModel", "colour": "C1", "type": "UNet2DModel",
            "config": {
                "block_out_channels": [4, 8], "down_block_types": ["DownBlock2D"] * 2,
                "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1, "norm_num_groups": 2,
            },
        }
    },
    "battle": {
        "networks": None, "parameters": 8000, "tolerance": 0.9, "seeds": [0], "learning_rates": [1e-2],
        "sweep_images": 8, "timing_rounds": 1,
    },
    "scores": {
        "extractor": "small", "protocol": "clean", "samples": 4, "steps": 1, "guidance_scale": 1.0,
        "batch_size": 4,
    },
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "optimizer": {"warmup_images": 8},
    "run": {"total_images": 8, "batch_size": 8, "log_images": 8, "sample_images": 8, "checkpoint_images": 8},
}  # fmt: skip
_BLOCKS = {"num_layers": 1, "hidden_size": 16, "attention_head_dim": 8, "window_size": 2}

_SPACE = {
    "space": {"stages": [{"blocks": ["resnet"], "channels": [16], "layers": [1, 2]}], "config": {"time_embed_dim": 8}},
    "search": {"steps": 1, "paths": 1, "rated": 2},
    "run": {"batch_size": 2, "mixed_precision": "no"},
}
_ABLATION = {
    "variants": {"plain": None, "twice": {"set": {"model.config.layers_per_block": 2}}},
    "ablation": {"seeds": [0], "timing_rounds": 1},
    "model": {"type": "BlockUNet2DModel", "config": {"block_types": "resnet", "block_out_channels": [8, 16]}},
    "run": {"batch_size": 2, "total_images": 2, "mixed_precision": "no"},
}

COMMANDS = {
    "generate": Command(
        words("generate IN/model --count 2 --steps 1 --batch-size 1 --output OUT/out"),
        again=None, grows=True, equal="nothing",
    ),
    "evaluate gen": Command(
        words("evaluate gen IN/model -n 6 --labels balanced --steps 1 --batch-size 2 --device cpu -o OUT/out"),
        again=None, grows=True,
    ),
    "evaluate gen npz": Command(
        words("evaluate gen IN/model -n 4 --steps 1 --batch-size 2 --format npz --device cpu -o OUT/out.npz"),
        output="out.npz", again=None,
    ),
    "evaluate ref": Command(
        words("evaluate ref SAMPLE --resolution 16 --limit 4 -o OUT/out.safetensors"),
        output="out.safetensors", stand_ins=small_extractor,
    ),
    "evaluate reconstruct": Command(words("evaluate reconstruct IN/vae SAMPLE --resolution 16 --limit 4 -o OUT/out")),
    "evaluate calc": Command(
        words("evaluate calc IN/samples --reference IN/ref.safetensors --metrics kd --subsets 2 --subset-size 4"
              " -o OUT/out/result.json"),
        grows=True, stand_ins=small_extractor,
    ),
    "report": Command(words("report IN/calc/result.json -o OUT/out")),
    "judge": Command(words("judge IN/samples --detector shapes --prompt circles -o OUT/out")),
    "search": Command(
        words("search IN/model IN/split/held-out --budget 0.9 --pairs 2 --steps 2 --batch-size 2 -o OUT/out"),
        grows=True,
    ),
    "benchmark": Command(
        words("benchmark schedules --weights IN/model --steps 1 --rounds 1 --batch 1 -o OUT/out"),
        grows=True, equal="names",
    ),
    "sweep": Command(
        words("sweep IN/model --sizes 16 --ratios 1:1 2:1 --steps 1 -o OUT/out"),
        again=None, grows=True, equal="names",
    ),
    "seams": Command(
        words("seams IN/model --sizes 16x32 --windows fixed --count 2 --steps 1 -o OUT/out"), grows=True, equal="names"
    ),
    "battle": Command(
        words("battle --config IN/battle.yaml -o OUT/out"),
        again=None, grows=True, equal="nothing", stand_ins=cells_in_forks,
    ),
    "ablation": Command(
        words("ablation IN/ablation.yaml -o OUT/out", *FACES),
        again=None, grows=True, equal="nothing", stand_ins=cells_in_forks,
    ),
    "search-blocks": Command(
        words("search-blocks IN/space.yaml -o OUT/out", *FACES), again=None, grows=True, equal="nothing"
    ),
    "convbn": Command(
        words("convbn --only curves --curves tiny-d-emo --steps 1 --device cpu --rates sgd 0.1 -o OUT/out",
              *FACES[:1], "data.size=8", "data.held_out=0.4", "run.total_images=8", "run.batch_size=8",
              "samples.count=0", "run.sample_images=0", f"model.config={json.dumps(_BLOCKS)}"),
        again=None, grows=True, equal="nothing",
    ),
    "demo": Command(
        words("demo --weights IN/model --text-weights= --images 1 --steps 1 --output OUT/out.png"), output="out.png"
    ),
    "demo resadapter": Command(
        words("demo resadapter --prompts sun --steps 1 --output OUT/out.png"), output="out.png",
        stand_ins=one_size,
    ),
    "train": Command(
        words("train --preset tiny-dit run.output_dir=OUT/out", *FACES, "run.total_images=8", "run.batch_size=4",
              "samples.count=0", "metrics.every_images=0"),
        output="out/pipeline", again=None, grows=True, equal="nothing",
    ),
    "distill": Command(
        words("distill IN/model --steps 2 run.output_dir=OUT/out", *FACES, "run.total_images=8", "run.batch_size=4",
              "samples.count=0", "metrics.every_images=0"),
        output="out/pipeline", again=None, grows=True, equal="nothing",
    ),
    "publish": Command(words("publish IN/run OUT/out"), stand_ins=few_samples),
    "forecast": Command(
        words("forecast IN/series.csv --model IN/series --horizon 4 -n 2 --steps 1 -o OUT/out.csv"), output="out.csv"
    ),
    "new-config": Command(words("new-config tiny-lego -o OUT/out.yaml"), output="out.yaml"),
    "scale": Command(words("scale tiny-dit --budget 1x -o OUT/out.yaml"), output="out.yaml"),
    "export": Command(words("export IN/model -o OUT/out --rounds 0 --subnets 0"), equal="names"),
    "convert lego": Command(words("convert lego IN/lego.pkl OUT/out")),
    "convert dit": Command(words("convert dit IN/dit.pt OUT/out --attention-head-dim 4")),
    "convert resadapter": Command(
        words("convert resadapter SD/resadapter OUT/out.safetensors --to comfyui --base-model SD"),
        output="out.safetensors",
    ),
    "merge": Command(words("merge SD SD/resadapter OUT/out"), again=None),
    "data build emoji": Command(
        words("data build emoji --packages IN/packages --size 16 --output OUT/out"), grows=True,
        stand_ins=tiny_emoji_packages,
    ),
    "data build avatars": Command(
        words("data build avatars --count 3 --held-out 1 --size 32 --styles micah --output OUT/out"),
        stand_ins=no_dicebear,
    ),
    "data select": Command(
        words("data select SAMPLE --where style=fluent --output OUT/out.parquet"), output="out.parquet"
    ),
    "data split": Command(words("data split --output OUT/out", *FACES), again=None),
    "data check": Command(words("data check SAMPLE --size 16 -o OUT/out")),
    "data cache": Command(words("data cache --vae IN/vae --output OUT/out", *FACES)),
    "data cache captions": Command(words("data cache --captions text --pipeline SD --output OUT/out", *FACES)),
}  # fmt: skip


# --- their inputs


def make_inputs(folder: Path) -> Path:
    """What the commands read, some hundred kilobytes in a few seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "battle.yaml").write_text(yaml.safe_dump(_BATTLE))
    (folder / "space.yaml").write_text(yaml.safe_dump(_SPACE))
    (folder / "ablation.yaml").write_text(yaml.safe_dump(_ABLATION))
    (folder / "lego.pkl").write_bytes(lego_pickle())
    torch.save(dit_tensors(), folder / "dit.pt")
    _save_vae(folder / "vae")
    _save_packages(folder / "packages")
    _save_series(folder)
    os.environ["BRICKWORK_TEST_PACKAGES"] = str(folder / "packages")
    short = [f"run.output_dir={folder / 'run'}", "run.total_images=8", "run.batch_size=4", "samples.count=0"]
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(told))
        from brickwork.training import train_backbone

        assert train_backbone.main([*FACES, *short, f"model.config={json.dumps(LEGO)}"]) == 0, told.getvalue()
        stack.enter_context(_as_before())
        few_samples()
        small_extractor()
        for command in (
            "publish IN/run IN/model",
            "evaluate gen IN/model -n 6 --labels balanced --steps 1 --batch-size 2 --device cpu -o IN/samples",
            "evaluate ref SAMPLE --resolution 16 --limit 6 -o IN/ref.safetensors",
            "evaluate calc IN/samples --reference IN/ref.safetensors --metrics kd --subsets 2 --subset-size 4"
            " -o IN/calc/result.json",
        ):
            assert cli.main(words(command)(folder, folder)) == 0, told.getvalue()
        assert cli.main(["data", "split", "--output", str(folder / "split"), *FACES]) == 0, told.getvalue()
    return folder


def lego_pickle() -> bytes:
    """A snapshot of one brick with the structure of the LEGO authors' (see `tests/gen/original/conftest.py`)."""
    from _pytest.monkeypatch import MonkeyPatch

    maker = _module(Path(__file__).parent / "gen" / "original" / "conftest.py")
    with MonkeyPatch.context() as patch:
        return maker.SnapshotMaker(patch, Path("nothing-is-run")).dumps(maker.tiny_tensors())


def _module(path: Path) -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dit_tensors() -> dict[str, torch.Tensor]:
    """The authors' tensors of a DiT of one block, eight features wide."""
    from brickwork.gen.conditioning import sincos_position_table
    from brickwork.gen.original.dit_checkpoints import _layers

    config = {
        "sample_size": 4, "patch_size": 2, "in_channels": 3, "out_channels": 3, "num_classes": 2, "num_layers": 1,
        "hidden_size": 8, "mlp_ratio": 4.0,
    }  # fmt: skip
    tensors = {"pos_embed": sincos_position_table(8, 2, 2)[None]}
    for theirs, _, shape in _layers(config):
        tensors[f"{theirs}.weight"] = torch.full(shape, 0.1)
        if not theirs.startswith("y_embedder"):
            tensors[f"{theirs}.bias"] = torch.zeros(shape[0])
    return tensors


def _save_vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=2, norm_num_groups=2, sample_size=16, layers_per_block=1,
    ).save_pretrained(folder)  # fmt: skip


def _save_series(folder: Path) -> None:
    from diffusers import EDMEulerScheduler

    from brickwork import SeriesDenoiser, TimeSeriesPipeline

    rows = [f"2024-01-{day:02d},{day % 7}" for day in range(1, 25)]
    (folder / "series.csv").write_text("\n".join(["time,a", *rows]) + "\n")
    network = {"block_out_channels": [8], "layers_per_block": 1}
    denoiser = SeriesDenoiser(length=16, periods=[7], network=network)
    TimeSeriesPipeline(denoiser, EDMEulerScheduler(sigma_data=1.0), names=["a"]).save_pretrained(folder / "series")


def _save_packages(folder: Path) -> None:
    from brickwork.training.data.build.emoji import SOURCES

    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><circle cx="18" cy="18" r="12"/></svg>'
    picture = io.BytesIO()
    Image.fromarray(np.full((20, 20, 4), 128, np.uint8)).save(picture, "WEBP", lossless=True)
    skull = {"unified": "2620-FE0F", "name": "SKULL", "category": "Smileys & Emotion", "subcategory": "face-negative"}
    contents = {
        "twemoji": {"package/2620.svg": svg},
        "fluent": {"package/assets/2620-fe0f.webp": picture.getvalue()},
        "names": {"package/emoji.json": json.dumps([skull]).encode()},
    }
    folder.mkdir()
    for kind, package in vars(SOURCES).items():
        with tarfile.open(folder / package.tarball, "w:gz") as archive:
            for name, content in contents[kind].items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


# --- in a process of its own


def start(
    command: Command, arguments: list[str], told: int | None = None, before: Callable[[], None] = lambda: None
) -> int:
    """The command in a forked process, with everything imported already and a process group of its own.

    Args:
        command: one of `COMMANDS`.
        arguments: its words.
        told: file descriptor for what it prints; where `None`, the end of it is printed if it fails.
        before: called in the process first.

    Returns:
        The process's number.
    """
    process = os.fork()
    if process:
        return process
    status, said = 70, io.StringIO()
    try:
        os.setsid()  # cells that it starts are killed with it
        signal.alarm(LONGEST)  # a process that waits for good ends itself, and so fails
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            command.stand_ins()
            AcceleratorState._reset_state(reset_partial_state=True)  # as a new process has it
            before()
            status = cli.main(arguments)
    except SystemExit as stop:  # what argparse says no to
        status = stop.code
    except BaseException as error:  # it must not go on as the process that it was forked from
        said.write(f"\nTraceback: {type(error).__name__}: {error}\n")
    finally:
        if told is not None:
            os.write(told, said.getvalue()[-10_000:].encode())
        elif status:
            sys.__stderr__.write(said.getvalue()[-500:] + "\n")
        os._exit(status)


def run_out(command: Command, arguments: list[str], before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """The exit status of a command in a process of its own, and what it printed."""
    reading, writing = os.pipe()
    process = start(command, arguments, writing, before)
    os.close(writing)
    with open(reading, encoding="utf-8") as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text
