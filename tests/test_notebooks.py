"""The notebooks run as they stand but for the values of their first cell, and the drawings of the docs are current."""

import importlib.util
import io
import json
import linecache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import brickwork

ROOT = Path(__file__).parent.parent
TINY = {
    "lego": {"PICTURES": "held-out", "COUNT": 1, "STEPS": 3, "PAIRS": 2},
    "resadapter": {"SIZES": [(48, 48), (64, 48)], "STRENGTHS": [0.0, 1.0], "STEPS": 2},
}


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    """A folder of two pictures of each class of the weights that ship, in the folder where a notebook runs."""
    monkeypatch.chdir(tmp_path)
    rows = pq.read_table(ROOT / "tests" / "data" / "emoji" / "sample.parquet").to_pylist()
    config = json.loads((brickwork.pretrained("lego-avatars-64") / "transformer" / "config.json").read_text())
    for number, name in enumerate(config["id2label"].values()):
        folder = tmp_path / "held-out" / name
        folder.mkdir(parents=True)
        for row in rows[2 * number : 2 * number + 2]:
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((64, 64))
            image.save(folder / f"{row['codepoints']}.png")


def code_cells(name: str) -> list[tuple[list[str], str]]:
    """Tags and source of a notebook's cells of code."""
    book = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and all(not cell.get("outputs") for cell in book["cells"])
    return [(c["metadata"].get("tags", []), "".join(c["source"])) for c in book["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("name", sorted(TINY))
def test_notebooks_run_from_top_to_bottom(name, held_out):
    scope = {"__name__": "__main__"}
    for number, (tags, source) in enumerate(code_cells(name)):
        where = f"{name}.ipynb:{number}"
        linecache.cache[where] = (
            len(source),
            None,
            source.splitlines(True),
            where,
        )  # so that a failure shows its line
        exec(compile(source, where, "exec"), scope)
        if "parameters" in tags:
            assert set(TINY[name]) <= set(scope)
            scope |= TINY[name]


def test_every_notebook_is_run():
    assert {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")} == set(TINY)


def test_the_drawings_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    spec.loader.exec_module(pictures := importlib.util.module_from_spec(spec))
    for name, draw in pictures.PICTURES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == draw(), "run `python docs/pictures.py`"
