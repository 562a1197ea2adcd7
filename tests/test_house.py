"""The house itself: what may import what, and what a person gets who installs the wheel."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("gen", "pipelines", "adapters", "eval", "training")
MAY_IMPORT = {
    "gen": {"gen"},
    "adapters": {"adapters"},
    "pipelines": {"gen", "pipelines"},
    "eval": {"gen", "pipelines", "adapters", "eval"},
    "training": set(ROOMS),
}


def modules() -> dict[str, Path]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Names after `brickwork.` that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brickwork."):
            module = node.module.removeprefix("brickwork.")
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("brickwork.") for a in node.names if a.name.startswith("brickwork.")}
    return found


def test_imports_point_one_way():
    wrong = {
        (name, target)
        for name, path in modules().items()
        for target in imports_of(path)
        if target.split(".")[0] in ROOMS and target.split(".")[0] not in MAY_IMPORT[name.split(".")[0]]
    }
    assert not wrong


def test_no_two_files_import_each_other():
    known = modules()
    graph = {name: imports_of(path, top_level_only=True) & set(known) - {name} for name, path in known.items()}
    # A package imports its own files to register them; a file's import of its package is a cycle all the same.
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a cycle of imports: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_package_is_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        f"brickwork.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for r in ROOMS
        for p in (ROOT / r).rglob("__init__.py")
    }
    assert folders | {"brickwork"} == set(packages)


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
pipe = diffusers.DiffusionPipeline.from_pretrained(brickwork.pretrained("lego-emoji-64"))
assert type(pipe).__name__ == "LegoPipeline"
image = pipe(class_labels=["smileys & emotion"], num_inference_steps=2, width=80).images[0]
image.save("face.png")
print(brickwork.__file__, image.size)
"""
    output = run_installed(installed, tmp_path, code)
    assert output.split()[0].startswith(str(installed))
    assert output.endswith("(80, 64)\n")
    assert (tmp_path / "face.png").stat().st_size > 100


def test_the_wheel_brings_what_is_not_python(installed):
    site = installed / "brickwork"
    assert (site / "training" / "configs" / "defaults.yaml").is_file()
    assert (site / "pipelines" / "pretrained" / "lego-emoji-64" / "model_index.json").is_file()
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


def test_our_classes_are_attributes_of_diffusers():
    import diffusers

    import brickwork

    assert diffusers.LegoPipeline is brickwork.LegoPipeline
    with pytest.raises(AttributeError, match="NoSuchName"):
        diffusers.NoSuchName  # noqa: B018


def test_unknown_weights_are_named():
    import brickwork

    with pytest.raises(ValueError, match="'lego-emoji'.*lego-emoji-64"):
        brickwork.pretrained("lego-emoji")


def test_exactly_what_diffusers_loads_is_registered_with_it():
    import diffusers

    import brickwork

    kinds = (diffusers.ModelMixin, diffusers.DiffusionPipeline, diffusers.SchedulerMixin)
    loaded = {name: getattr(brickwork, name) for name in brickwork.__all__}
    found = {name for name, value in loaded.items() if isinstance(value, type) and issubclass(value, kinds)}
    assert found == set(brickwork._REGISTERED)
    assert all(getattr(diffusers, name) is loaded[name] for name in found)
