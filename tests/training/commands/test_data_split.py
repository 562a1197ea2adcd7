"""The pictures that a run trains on and holds out, as two folders."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from brickwork import cli
from brickwork.eval.sets.pictures import open_image_set
from brickwork.training.commands.data_split import write_split
from brickwork.training.data.images import LabelledImages


@pytest.fixture
def images():
    """Forty drawings in twenty groups of two, of three classes, the last two of them wanted in another order."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(40)]
    columns = {"image": pictures, "label": [i % 3 for i in range(40)], "drawing": [f"d{i // 2}" for i in range(40)]}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list("abc")), "drawing": Value("string")})
    table = Dataset.from_dict(columns, features=features)
    return LabelledImages(table, 8, group_column="drawing", classes=["c", "b"])


def test_the_folders_hold_the_runs_own_split_at_its_size(images, tmp_path):
    counts = write_split(images, 0.3, tmp_path / "split")
    train, held_out = images.split(0.3)
    assert counts == {"train": len(train), "held-out": len(held_out)} and len(held_out) > 2
    found = open_image_set(tmp_path / "split" / "held-out")
    assert found.labels == images.labels[held_out].tolist()
    for i, row in enumerate(held_out):
        np.testing.assert_array_equal(np.asarray(found.open(i)), images.picture(row, (8, 8)))
    assert len(open_image_set(tmp_path / "split" / "train")) == len(train)


def test_the_same_split_stays_and_another_is_refused(images, tmp_path):
    first = write_split(images, 0.3, tmp_path / "split")
    kept = (tmp_path / "split" / "split.json").stat().st_mtime_ns
    assert write_split(images, 0.3, tmp_path / "split") == first
    assert (tmp_path / "split" / "split.json").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="add --overwrite"):
        write_split(images, 0.4, tmp_path / "split")
    assert write_split(images, 0.4, tmp_path / "split", overwrite=True) != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        write_split(images, 0.3, tmp_path / "mine")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="`data.held_out` is"):
            write_split(images, share, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "split"]


def test_the_command(images, tmp_path, capsys):
    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "pictures" / name / f"{i}.png")
    arguments = ["data", "split", "--output", str(tmp_path / "split"), f"data.source={tmp_path / 'pictures'}"]
    assert cli.main([*arguments, "data.size=8", "data.held_out=0.4"]) == 0
    assert "train: " in capsys.readouterr().out
    assert json.loads((tmp_path / "split" / "split.json").read_text())["size"] == 8
