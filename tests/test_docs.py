"""Every line of code in README.md and docs/: commands are parsed as they stand, Python is run on tiny settings.

What Python needs to run here stands before its block, in comments that no reader sees:

    <!-- before: code that is run first -->
    <!-- with: words of the block => what is put in their place here; more => less -->
    <!-- not run: the reason -->      (its names are still imported)
    <!-- needs: modules of an extra, which `make test` installs; without them the rest of the page is skipped -->

Blocks of a page are run in order, with the names of those before.

`test_house.py` runs this file beside a copy of the pages for an installed wheel too, where there is no clone: scripts
are then those in the package, and what is of the clone alone (`make`, `tests/`, the Dockerfile) is passed over.
"""

import ast
import importlib
import json
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import brickwork
from brickwork import cli
from brickwork.training.config.config import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CLONE = (ROOT / "Makefile").is_file()
ONE_STEP = (brickwork.LegoPipeline, brickwork.ClassToImagePipeline, StableDiffusionPipeline)  # that draw in one here
GIVEN_IN_PROSE = re.compile(r"`(brickwork [a-z][^`]*)`")


@dataclass
class Block:
    """A fenced block of a page: its language, first line, text, and the comments before it."""

    page: Path
    language: str
    line: int
    text: str
    comments: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = r"((?:<!--(?:(?!-->).)*-->\s*\n)*)^[ ]*```(\w+)\n(.*?)^[ ]*```$"
        for match in re.finditer(fences, text, re.DOTALL | re.MULTILINE):
            comments = dict(re.findall(r"<!-- (before|with|not run|needs):\s(.*?) -->", match[1], re.DOTALL))
            line = text[: match.start(3)].count("\n") + 1
            found.append(Block(page, match[2], line, match[3], comments))
    return [block for block in found if block.language in languages]


def commands(text: str) -> list[list[str]]:
    """The commands of a block of shell as words; variables set in it are put in, loops are taken once."""
    found, values = [], {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            name, _, value = words.pop(0).partition("=")
            values[name] = value
        if words[:1] == ["for"]:
            values[words[1]] = words[3].rstrip(";")
        elif words and words[0] != "done":
            found.append([re.sub(r"\$(\w+)", lambda match: values[match[1]], word) for word in words])
    return found


def task_of(script: str) -> type:
    """The configuration that a training script reads."""
    tasks = {"train_gan": "gan:GanTask", "train_backbone": "backbone:BackboneTask"}
    tasks |= {"train_resadapter": "latent.resadapter:ResAdapterTask"}
    tasks |= {"train_text_to_image": "latent.text_to_image:TextToImageTask"}
    tasks |= {"train_autoencoder": "autoencoder:AutoencoderTask", "train_video": "video:VideoTask"}
    tasks |= {"train_adapter": "latent.adapter:AdapterTask", "train_series": "series:SeriesTask"}
    module, name = tasks[Path(script).stem].split(":")
    return getattr(importlib.import_module(f"brickwork.training.tasks.{module}"), name).configuration


def check_run(args, kind: type) -> None:
    """The configuration of a training run is read, with the values on its line."""
    values = [word for word in args.overrides if "=" in word]
    if args.config and Path(args.config).name in ("my_run.yaml", "winner.yaml"):  # a reader's own
        args.config = "lego_emoji_64"
        values += ["run.total_images=100000"]
    if getattr(args, "preset", None):
        from brickwork.training.config.recipes import recipe

        args.config, over = recipe(args.preset)
        values = [*over, *values]
    if args.config or values:
        load_config(args.config, values, kind)


def check_brickwork(words: list[str]) -> None:
    name, rest = cli._find(words)
    assert name or words in (["--version"], ["--help"]), f"no command {words}"
    if not name or "--help" in rest:
        return
    args = cli.parser_of(name).parse_intermixed_args(rest)
    if name == "train":
        check_run(args, task_of("train_backbone"))
    if getattr(args, "config", None) and name.startswith("data "):
        load_config(args.config)


def script_file(path: str) -> Path:
    """Of a script of the tree; outside a clone, of the module that it is in the package."""
    if CLONE:
        return ROOT / path
    return Path(importlib.util.find_spec(".".join(("brickwork", *Path(path).with_suffix("").parts))).origin)


def check_script(file: Path, words: list[str], monkeypatch) -> None:
    """A script is there and takes these words: it stops right after it has read them."""
    assert file.is_file(), file
    read = []

    def stop(parser, arguments=None, namespace=None):
        read.append(cli.argparse.ArgumentParser.parse_known_args(parser, arguments, namespace))
        assert not read[-1][1], f"{file} does not take {read[-1][1]}"
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [str(file), *words])
        patch.setattr("argparse.ArgumentParser.parse_args", stop)
        patch.setattr("argparse.ArgumentParser.parse_intermixed_args", stop)
        patch.syspath_prepend(str(file.parent))
        runpy.run_path(str(file), run_name="__main__")
    if file.stem.startswith("train_") and hasattr(read[0][0], "overrides"):
        check_run(read[0][0], task_of(file.name))


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"(?:^\.|^brickwork)\[(.*)\]", word):
            assert set(extra.split(",")) <= set(extras), word


def check(words: list[str], monkeypatch) -> None:
    """A command is one of ours, takes its options, and the files of the tree that it names are there."""
    program, *rest = words
    of_clone = program in ("make", "pytest", "docker", "pip") or rest and rest[0].startswith(("tests/", "docs/"))
    if of_clone and not CLONE:
        return
    if program == "brickwork":
        check_brickwork(rest)
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(rest[1:])
        script = args.training_script
        file = Path(importlib.util.find_spec(script).origin) if args.module else script_file(script)
        check_script(file, args.training_script_args, monkeypatch)
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest[1]
        if rest[1].startswith("brickwork."):
            check_script(Path(importlib.util.find_spec(rest[1]).origin), rest[2:], monkeypatch)
    elif program == "python" and rest[0] == "-c":
        ast.parse(rest[1])
    elif program == "python":
        assert script_file(rest[0]).is_file(), rest[0]
        if not rest[0].startswith("tests/"):
            check_script(script_file(rest[0]), rest[1:], monkeypatch)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), words
    elif program == "pip":
        check_pip(rest)
    elif program == "pytest":
        paths = [word.partition("::")[0] for word in rest if word.startswith("tests/")]
        assert all((ROOT / path).exists() for path in paths), words
    elif program == "docker":
        assert (ROOT / rest[rest.index("-f") + 1]).is_file() if "-f" in rest else "build" not in rest, words
    else:
        pytest.fail(f"nothing here knows how to check {words}")


@pytest.mark.parametrize("block", blocks("bash", "sh", "shell", "console"), ids=str)
def test_commands_are_taken_as_they_stand(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(block.text)
    assert found
    for words in found:
        try:
            check(words, monkeypatch)
        except SystemExit:
            pytest.fail(f"{block}: refused: {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page):
    """Commands between words are often shortened: the command and its options are there."""
    for given in GIVEN_IN_PROSE.findall(page.read_text(encoding="utf-8")):
        words = given.replace("\n", " ").split()[1:]
        if words[0] == "COMMAND":
            continue
        name, _ = cli._find(words)
        group = any(command.startswith(f"{words[0]} ") for command in cli.COMMANDS)
        assert name or group, f"{page.name}: no command in `{given}`"
        known = set(cli.parser_of(name).option_names()) if name else set()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known | {"--help"}, f"{page.name}: `{given}`: {options - known}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the reader's own pictures, in which one step is what a pipeline takes."""
    monkeypatch.chdir(tmp_path)
    config = json.loads((brickwork.pretrained("lego-avatars-64") / "transformer" / "config.json").read_text())
    for number, name in enumerate([*config["id2label"].values()] * 2):
        for source in ("my-pictures", "held-out"):
            path = tmp_path / source / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = (64, 64) if source == "held-out" else (40, 48)
            pixels = np.random.default_rng(number).integers(0, 255, (*side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    for kind in ONE_STEP:
        drawn = kind.__call__

        def quick(pipe, *args, drawn=drawn, **kwargs):
            return drawn(pipe, *args, **{"num_inference_steps": 1} | kwargs)

        monkeypatch.setattr(kind, "__call__", quick)
    return tmp_path


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python", "py")}), ids=lambda page: page.name)
def test_python_runs(page, folder, recwarn):
    """The blocks of a page are run in order, each with the names of those before it."""
    scope = {"torch": torch}
    torch.manual_seed(0)
    for block in blocks("python", "py"):
        if block.page == page:
            run_block(block, scope)


def run_block(block: Block, scope: dict) -> None:
    for module in block.comments.get("needs", "").split():
        pytest.importorskip(module, reason=f"{block} needs {module}, of an extra that `make test` installs")
    code = compile(block.text, str(block), "exec", ast.PyCF_ONLY_AST)
    if "not run" in block.comments:
        assert len(block.comments["not run"].split()) > 2, "say why"
        code.body = [node for node in code.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(code, str(block), "exec"), scope)
        return
    text = block.text
    for pair in filter(None, re.split(r";\s", block.comments.get("with", ""))):
        words, instead = pair.split(" => ")
        assert words in text, f"{block} does not have {words!r}"
        text = text.replace(words, instead)
    exec(compile(block.comments.get("before", ""), f"{block} (before)", "exec"), scope)
    exec(compile(text, str(block), "exec"), scope)


def test_what_pages_need_is_installed_by_make_test():
    """What a page's code is skipped without comes with the extra `test`, so that CI skips nothing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (others,) = [re.findall(r"[\w-]+", line)[1:] for line in extras["test"] if line.startswith("brickwork[")]
    lines = [*extras["test"], *(line for extra in others for line in extras[extra])]
    installed = {re.match(r"[\w-]+", line)[0] for line in lines}
    needed = {module for block in blocks("python", "py") for module in block.comments.get("needs", "").split()}
    assert needed and needed <= installed


def test_links_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if path.startswith(("http", "mailto")):
                continue
            there = page.parent / path if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor and there.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{page.name}: {target}"


def test_every_page_is_on_the_site():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f" {page.name}\n" not in menu] == []
