"""Some rows of a data set."""

from pathlib import Path

import pytest

from brickwork import cli
from brickwork.training.data.images import LabelledImages, load_table

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"


def test_rows_that_meet_all_conditions(tmp_path, capsys):
    output = tmp_path / "some" / "rows.parquet"
    condition = "label=Smileys & Emotion,Food & Drink"
    assert cli.main(["data", "select", str(SAMPLE), "--output", str(output), "--where",
                     "style=twemoji", "--where", condition]) == 0  # fmt: skip
    found, every = load_table(str(output)), load_table(str(SAMPLE))
    names = every.features["label"].names
    wanted = [
        text
        for text, style, label in zip(every["text"], every["style"], every["label"])
        if style == "twemoji" and names[label] in ("Smileys & Emotion", "Food & Drink")
    ]
    assert list(found["text"]) == wanted
    assert f"{len(wanted)} rows" in capsys.readouterr().out
    assert LabelledImages(found, 8).picture(0).shape == (8, 8, 3)  # pictures and class names are still there
    assert [path.name for path in output.parent.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["style"], "not COLUMN=VALUE"),
        (["styles=fluent"], "did you mean 'style'"),
        (["style=fluente"], "did you mean 'fluent'"),
        (["style=fluent", "style=twemoji"], "No row meets all"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, where, message):
    conditions = [part for condition in where for part in ("--where", condition)]
    assert cli.main(["data", "select", str(SAMPLE), "--output", str(tmp_path / "a.parquet"), *conditions]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "a.parquet"
    path.write_text("mine")
    assert cli.main(["data", "select", str(SAMPLE), "--output", str(path), "--where", "style=fluent"]) == 2
    assert cli.main(["data", "select", str(SAMPLE), "--output", "rows.csv", "--where", "style=fluent"]) == 2
    assert path.read_text() == "mine"


def test_its_own_file_is_replaced_when_asked_and_no_other_parquet(tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    words = ["data", "select", str(SAMPLE), "--output", str(path), "--where"]
    assert cli.main([*words, "style=fluent"]) == 0
    assert cli.main([*words, "style=twemoji"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "style=twemoji", "--overwrite"]) == 0
    assert set(load_table(str(path))["style"]) == {"twemoji"}
    path.write_bytes(SAMPLE.read_bytes())
    assert cli.main([*words, "style=fluent", "--overwrite"]) == 2
    assert "something else" in capsys.readouterr().err and path.read_bytes() == SAMPLE.read_bytes()
