"""The house itself: what may import what, and what a person gets who installs the wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("gen", "pipelines", "adapters", "eval", "training")
GROUND = {"files", "errors", "compat", "hub", "options"}
MAY_IMPORT = {
    "gen": {"gen"},
    "adapters": {"adapters"},
    "pipelines": {"gen", "adapters", "pipelines"},
    "eval": {"gen", "pipelines", "adapters", "eval"},
    "training": set(ROOMS),
}


def modules() -> dict[str, Path]:
    """Every file of the package by its name behind `brickwork.`."""
    files = [(ROOT, path) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    files += [(ROOT / "src" / "brickwork", path) for path in (ROOT / "src" / "brickwork").rglob("*.py")]
    names = {".".join(path.relative_to(top).with_suffix("").parts): path for top, path in files}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The files of ours that a file imports, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "brickwork":
            module = node.module.removeprefix("brickwork").removeprefix(".")
            for alias in node.names:
                deeper = f"{module}.{alias.name}".removeprefix(".")
                found.add(deeper if deeper in known else module)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("brickwork.") for alias in node.names}
    return {name for name in found if name in known and known[name] != path}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: imports_of(path, known) for name, path in known.items()}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Ways that lead back to where they began, one for each knot of a graph."""
    found, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_imports_point_one_way(arrows):
    def floor_of(name: str) -> str:
        return name.split(".")[0]

    wrong = {
        f"{name} -> {target}"
        for name, targets in arrows.items()
        for target in targets
        if floor_of(name) in ROOMS and floor_of(target) not in MAY_IMPORT[floor_of(name)] | GROUND
    }
    wrong |= {f"{name} -> {target}" for name in GROUND for target in arrows[name] - GROUND}
    assert not wrong


def test_what_is_imported_of_ours_is_there():
    """Inside functions too, which a file that has moved may leave behind."""
    known = modules()
    texts = {name: path.read_text(encoding="utf-8") for name, path in known.items()}
    missing = set()
    for path in [*known.values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brickwork."):
                module = node.module.removeprefix("brickwork.")
                names = [alias.name for alias in node.names if f"{module}.{alias.name}" not in known]
                missing |= {f"{path.name}: {module}.{name}" for name in names if name not in texts.get(module, "")}
    assert not missing


def test_no_two_files_import_each_other(arrows):
    assert not circles(arrows)


def test_no_two_folders_import_each_other(arrows):
    known = modules()

    def folder_of(name: str) -> str:
        return name if known[name].name == "__init__.py" else name.rpartition(".")[0]

    folders: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        if name.split(".")[0] in ROOMS:
            here = folder_of(name)
            folders.setdefault(here, set()).update({folder_of(target) for target in targets} - {here, ""})
    assert not circles(folders)


def test_the_walls_would_notice():
    """The search for circles finds some."""
    assert circles({"a": {"b"}, "b": {"a"}}) == ["a -> b -> a"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_private_names_of_other_packages_are_called_in_one_file():
    private = re.compile(
        r"torch\._(?!dynamo)[A-Za-z]|\._cdata|_get_init_keys|_hf_hook|__class__ = |_foreach_|diffusers\.[a-z_.]*\._"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in (*ROOMS, "src")
        for path in (ROOT / room).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line) and path.name != "compat.py" and "torch._utils" not in line
    ]
    assert not found


@pytest.mark.parametrize("call", ["os.replace(", "get_close_matches(", "NamedTemporaryFile("])
def test_what_the_ground_floor_does_is_done_there(call):
    found = {
        str(path.relative_to(ROOT))
        for room in (*ROOMS, "src")
        for path in (ROOT / room).rglob("*.py")
        if call in path.read_text(encoding="utf-8")
    }
    # The ComfyUI nodes are copied into other programs, where nothing else of ours is.
    assert {name for name in found if "comfyui" not in name} <= {"src/brickwork/files.py", "src/brickwork/errors.py"}


def test_every_package_is_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        f"brickwork.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for r in ROOMS
        for p in (ROOT / r).rglob("__init__.py")
    }
    ground = {".".join(p.parent.relative_to(ROOT / "src").parts) for p in (ROOT / "src").rglob("__init__.py")}
    assert folders | ground == set(packages)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tree and unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *ROOMS, "src", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
    )
    names = tracked.stdout.decode().split("\0")[:-1]
    if not names:  # not a checkout
        names = [str(p.relative_to(ROOT)) for r in (*ROOMS, "src") for p in (ROOT / r).rglob("*") if p.is_file()]
        names += ["pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("brickwork-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run_installed(site: Path, cwd: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_draws_a_picture_outside_the_clone(installed, tmp_path):
    code = """
import brickwork, diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained(brickwork.pretrained("lego-avatars-64"))
assert type(pipe).__name__ == "LegoPipeline"
image = pipe(class_labels=["micah"], num_inference_steps=2, width=80).images[0]
image.save("face.png")
print(brickwork.__file__, image.size)
"""
    output = run_installed(installed, tmp_path, code)
    assert output.split()[0].startswith(str(installed))
    assert output.endswith("(80, 64)\n")
    assert (tmp_path / "face.png").stat().st_size > 100


def test_the_wheel_finds_its_configurations_outside_the_clone(installed, tmp_path):
    code = """
from brickwork.cli import main
from brickwork.training.config.config import load_config
config = load_config("lego_emoji_64")
assert config.data.classes and config.run.output_dir == "runs/lego-emoji-64"
assert main(["new-config", "dit-s-2", "-o", "mine.yaml", "data.source=pics"]) == 0
print(load_config("mine.yaml").model.preset)
"""
    assert run_installed(installed, tmp_path, code).endswith("dit-s-2\n")


def test_the_walk_of_a_new_user(installed, tmp_path):
    """A fresh folder with pictures of one's own, five commands as the README has them, nothing edited."""
    code = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from brickwork import cli

for number in range(48):
    path = Path("my-pictures") / ("cats", "dogs")[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
for words in (
    "data check my-pictures -o check",
    "train my-pictures run.total_images=8",  # only the length is shorter than what is chosen
    "generate runs/my-pictures --count 2 --steps 2",
    "info runs/my-pictures",
    "publish runs/my-pictures my-model",
):
    assert cli.main(words.split()) == 0, words
"""
    output = run_installed(installed, tmp_path, code)
    assert "48 pictures, 2 classes: cats 24, dogs 24" in output
    assert (tmp_path / "runs" / "my-pictures" / "index.html").is_file()
    assert (tmp_path / "my-model" / "model_index.json").is_file()
    assert len([*tmp_path.glob("generated/**/*.png")]) == 4  # two of each class
    assert not [*tmp_path.rglob("*.tmp")]


def test_the_pages_hold_for_the_wheel(installed, tmp_path):
    """Every command of every page, and the README's Python; with BRICKWORK_LONG=1 that of all pages, which takes long.

    `test_docs.py` runs all of it in the clone.
    """
    tests = [f"tests/{name}.py" for name in ("conftest", "forks", "test_docs")]
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", *tests):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    wanted = "commands or python_runs" if os.environ.get("BRICKWORK_LONG") else "commands or README"
    code = f"""
import sys, brickwork, pytest
assert brickwork.__file__.startswith({str(installed)!r})
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "tests/test_docs.py", "-k", {wanted!r}]))
"""
    assert " passed" in run_installed(installed, tmp_path, code)


def test_the_wheel_is_small_enough_to_publish(installed):
    (wheel,) = installed.parent.glob("brickwork-*.whl")
    assert wheel.stat().st_size <= 48 * 2**20
    pretrained = installed / "brickwork" / "pipelines" / "pretrained"
    assert sum(file.stat().st_size for file in pretrained.rglob("*.safetensors")) <= 42 * 2**20
    for folder in pretrained.iterdir():
        card = (folder / "README.md").read_text()
        assert "license:" in card.split("---")[1], folder.name


def test_the_wheel_brings_what_is_not_python(installed):
    site = installed / "brickwork"
    assert (site / "training" / "configs" / "defaults.yaml").is_file()
    assert (site / "pipelines" / "pretrained" / "lego-avatars-64" / "model_index.json").is_file()
    for folder in (site / "pipelines" / "pretrained").iterdir():
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        assert 0 < size <= 16 * 2**20, folder.name
        assert not [file for file in folder.rglob("*.json") if "_name_or_path" in file.read_text()]


def test_every_public_name_exists():
    import brickwork

    for name in brickwork.__all__:
        assert getattr(brickwork, name) is not None
    with pytest.raises(AttributeError, match="NoSuchName"):
        brickwork.NoSuchName  # noqa: B018


def test_unknown_weights_are_named():
    import brickwork

    with pytest.raises(ValueError, match="'lego-avatar'.*lego-avatars-64"):
        brickwork.pretrained("lego-avatar")


def test_exactly_what_diffusers_loads_is_registered_with_it():
    import diffusers

    import brickwork

    kinds = (diffusers.ModelMixin, diffusers.DiffusionPipeline, diffusers.SchedulerMixin)
    loaded = {name: getattr(brickwork, name) for name in brickwork.__all__}
    found = {name for name, value in loaded.items() if isinstance(value, type) and issubclass(value, kinds)}
    assert found == set(brickwork._REGISTERED)
    assert all(getattr(diffusers, name) is loaded[name] for name in found)
