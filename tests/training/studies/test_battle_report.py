"""The report of a battle says what its files say, finished or not, and says so on one page that needs nothing else."""

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brickwork.eval.report.blocks import Picture
from brickwork.eval.report.numbers import in_units
from brickwork.eval.studies.core import StudyFolder, write_report
from brickwork.eval.studies.core.cells import keep
from brickwork.training.studies import battle_report
from brickwork.training.studies.battle_report import report

IMAGES = (100, 200, 400)
LABELS = {"quick": "Quick", "slow": "Slow & sure", "even": "Even"}
KD = {"error": 0.001, "samples": 512, "steps": 10, "name": "KD-Tiny"}
# By network: final losses at seeds 0, 1, 2, training operations and seconds of one image.
NETWORKS = {
    "quick": ((0.50, 0.52, 0.54), 1e6, 0.5),
    "slow": ((0.40, 0.41, 0.42), 4e6, 1.0),
    "even": ((0.53, 0.51, 0.55), 2e6, 1.0),
}


def write(folder: Path, name: str, result) -> Path:
    """The file of a finished cell."""
    keep(folder / name, {"digest": ""}, lambda: result)
    return folder / name / "cell.json"


def make_cell(folder: Path, network: str, seed: int, final: float, **changes) -> Path:
    curve = [[0, 9.0], *([images, final + 0.1 * (2 - k)] for k, images in enumerate(IMAGES))]
    cell = {"network": network, "label": LABELS.get(network, network.title()), "seed": seed, "learning_rate": 1e-3}
    cell |= {
        "images": IMAGES[-1],
        "batch_size": 8,
        "curve": curve,
        "final_loss": final,
        "kd": KD | {"value": final / 10},
    }
    path = write(folder, f"cells/{network}-seed{seed}", cell | {"samples_png": "samples.png"} | changes)
    shade = (int(400 * curve[-1][1]) if final == final else 0, 0, 0)
    Image.new("RGB", (30, 34), shade).save(path.with_name("samples.png"))
    return path


def make_sweep(folder: Path, network: str, losses: dict) -> None:
    for rate, loss in losses.items():
        write(folder, f"sweep/{network}-{rate}", {"network": network, "learning_rate": rate, "final_loss": loss})


def make_battle(folder: Path, seeds=(0, 1, 2), networks=tuple(NETWORKS), extractor="tiny") -> Path:
    timing = {"device": "a <machine>", "unit": "CPU s", "networks": {}}
    for network in networks:
        finals, operations, seconds = NETWORKS[network]
        for seed in seeds:
            make_cell(folder, network, seed, finals[seed])
        costs = {"parameters": 1_234_567, "forward_operations": operations / 3, "training_operations": operations}
        costs |= {"seconds_per_image": seconds, "seconds_spread": [0.9 * seconds, 1.2 * seconds]}
        costs |= {"training_images_per_second": 1 / seconds, "sampling_images_per_second": 0.123}
        timing["networks"][network] = costs
        write(folder, f"memory/{network}", 2**29)
        make_sweep(folder, network, {0.001: 0.7, 0.01: 0.6, 0.1: 0.9})
    write(folder, "timing", timing)
    fd = {name: {"name": "FD-Tiny", "value": 100 * NETWORKS[name][0][0], "samples": 1536} for name in networks}
    write(folder, "frechet", fd)
    config = {"networks": {}, "battle": {"networks": None, "seeds": list(seeds)}, "data": {"size": 8}}
    change_config(folder, config | {"scores": {"extractor": extractor, "steps": 10}}, networks)
    return folder


def change_config(folder: Path, changes: dict, networks=()) -> None:
    """Write `study.json`, or other conditions and further networks into it."""
    file = folder / "study.json"
    config = (json.loads(file.read_text())["conditions"] if file.exists() else {"networks": {}}) | changes
    for name in networks:
        config["networks"][name] = {"label": LABELS.get(name, name.title()), "colour": "#ff0000"}
    file.write_text(json.dumps({"study": "battle", "conditions": config}))


def tell(folder: Path) -> None:
    write_report(StudyFolder.read(folder, "battle"), report)


class Page(HTMLParser):
    """Headings and pictures; fails where a tag is closed that is not open, or the page reaches outside itself."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.headings, self.pictures = [], [], 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        source = dict(attributes).get("src")
        assert source is None or source.startswith("data:image/png;base64,")
        self.pictures += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A finished battle with its report."""
    pytest.importorskip("matplotlib")
    folder = make_battle(tmp_path_factory.mktemp("battle"))
    tell(folder)
    return folder


@pytest.fixture
def no_plot(monkeypatch):
    """No time spent on plots."""
    monkeypatch.setattr(battle_report, "_curves", lambda *arguments: Picture(Image.new("RGB", (2, 2)), name="battle"))


def rows_of(folder: Path, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of the Markdown, its head first."""
    text = (folder / "battle.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}")[1].split("## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_the_tables_of_a_battle(full):
    assert rows_of(full, "At equal images: 400") == [
        ["", "network", "held-out loss", "by seed", "lead", "reversed", "KD-Tiny", "FD-Tiny"],
        ["1", "Slow & sure", "0.410 ± 0.010", "1, 1, 1", "0.110 ± 0.010", "0 of 3", "0.0410 ± 0.0010", "40.00"],
        ["2", "Quick", "0.520 ± 0.020", "2, 3, 2", "0.010 ± 0.020", "1 of 3", "0.0520 ± 0.0020", "50.00"],
        ["3", "Even", "0.530 ± 0.020", "3, 2, 3", "–", "–", "0.0530 ± 0.0020", "53.00"],
    ]
    # 400 MFLOP: Quick is done, Even at 200 of its images, Slow at 100.
    by_operations = rows_of(full, "At equal counted training operations: 400 MFLOP")
    assert [row[1:4] for row in by_operations] == [
        ["network", "images", "held-out loss"],
        ["Quick", "400", "0.520 ± 0.020"],
        ["Slow & sure", "100", "0.610 ± 0.010"],
        ["Even", "200", "0.630 ± 0.020"],
    ]
    assert [row[1:3] for row in rows_of(full, "At equal process CPU seconds: 200")[1:]] == [
        ["Slow & sure", "200"], ["Quick", "400"], ["Even", "200"],
    ]  # fmt: skip
    costs = rows_of(full, "What the networks cost")
    assert costs[1] == ["Quick", "1.23 M", "333 kFLOP", "1.00 MFLOP", "2", "0.123", "500 (450–600)", "0.50", "0.001"]
    assert costs[0][4:7] == ["trained/s", "sampled/s", "CPU ms"]
    assert rows_of(full, "Sweep")[:2] == [
        ["network", "0.001", "0.01", "0.1", "best"],
        ["Quick", "0.7", "0.6", "0.9", "0.01"],
    ]


def test_what_the_report_says_of_the_order(full):
    text = (full / "battle.md").read_text(encoding="utf-8").split("## ")[1]
    # Slow, Quick, Even at the first seed and the last; Slow, Even, Quick at the other.
    assert "0.56 on average, 0.33 at least (pairs of seeds: 3;" in text
    assert "a seed turns it round): Quick and Even." in text and "Slow & sure and Quick" not in text
    assert (
        "KD-Tiny (512 samples): kernel" in text
        and "FD-Tiny (1,536 samples): Fréchet" in text
        and "that of the losses: 1.00" in text
        and "Not all of it is there" not in text
    )


def test_the_page_is_whole_and_needs_nothing_else(full):
    text = (full / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    markdown = (full / "battle.md").read_text(encoding="utf-8")
    assert page.headings == [line[3:] for line in markdown.splitlines() if line.startswith("## ")]
    assert page.pictures == 2 and "![" in markdown and "(battle.png)" in markdown and "(samples.png)" in markdown
    assert (
        "a &lt;machine&gt;" in text
        and "extractor: tiny" in text
        and "Slow &amp; sure" in text
        and "Slow & sure" not in text
    )


def test_the_json_holds_everything_and_nothing_temporary_is_left(full):
    result = json.loads((full / "battle.json").read_text())
    assert result["format"] == "brickwork-battle/1" and result["missing"] == []
    assert [cell["network"] for cell in result["cells"]] == ["quick"] * 3 + ["slow"] * 3 + ["even"] * 3
    assert result["conditions"]["data"]["size"] == 8 and result["fd"]["slow"]["value"] == 40
    assert result["tables"]["images"]["kendall_tau"]["least"] == pytest.approx(1 / 3)
    assert result["timing"]["networks"]["even"]["peak_memory"] == 2**29 and result["sweep"]["even"]["0.01"] == 0.6
    written = {"battle.json", "battle.md", "battle.png", "samples.png", "index.html"}
    given = {"cells", "sweep", "memory", "timing", "frechet", "study.json"}
    assert {path.name for path in full.iterdir()} == written | given


def test_the_plot_has_lines_and_bands_in_a_panel_for_each_table(full):
    with Image.open(full / "battle.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert 1200 < pixels.shape[1] < 1600
    # The points at the ends of the curves have some 60 pixels each. A band is red, less than a fifth of it, on white.
    for colour, least in (((255, 0, 0), 500), ((255, 209, 209), 2000)):
        columns = (pixels == colour).all(axis=-1).sum(axis=0)
        assert all(third.sum() > least for third in np.array_split(columns, 3))


def test_the_sheet_shows_two_rows_of_samples_best_network_first(full):
    with Image.open(full / "samples.png") as picture:
        sheet = picture.convert("RGB")
    column = [sheet.getpixel((sheet.width - 20, y)) for y in range(sheet.height)]
    shades = [shade for shade in dict.fromkeys(column) if shade != (255, 255, 255)]
    assert shades == [(160, 0, 0), (200, 0, 0), (212, 0, 0)]
    # Two rows of 8 pixels and the gap of 2, of the grid's 34, enlarged by 640 // 30.
    assert column.count((160, 0, 0)) == 18 * 21


def test_an_unfinished_battle(tmp_path, no_plot):
    folder = make_battle(tmp_path, seeds=(0, 1), networks=("quick", "slow"))
    for file in ("frechet/cell.json", "cells/slow-seed1/cell.json", "cells/quick-seed0/samples.png"):
        (folder / file).unlink()
    shutil.rmtree(folder / "sweep")
    timing = json.loads((folder / "timing" / "cell.json").read_text())
    del timing["result"]["networks"]["quick"]
    (folder / "timing" / "cell.json").write_text(json.dumps(timing))
    change_config(folder, {}, ["late"])
    tell(folder)
    text = (folder / "battle.md").read_text(encoding="utf-8")
    for words in (
        "No result at seed 0 of Late.",
        "No result at seed 1 of Slow & sure, Late.",
        "No costs of Quick, Late. No sweep yet. No Fréchet distances yet.",
        "Quick is left out: its operations were not measured.",
        "Too few seeds in common to say anything of Slow & sure and Quick.",
    ):
        assert words in text
    assert "orders of two seeds" not in text
    assert "Sweep" not in text and [row[0] for row in rows_of(folder, "What the networks cost")[1:]] == ["Slow & sure"]
    assert [row[1] for row in rows_of(folder, "At equal counted")[1:]] == ["Slow & sure"]
    head, *rows = rows_of(folder, "At equal images: 400")
    assert head == ["", "network", "held-out loss", "seeds", "lead", "reversed", "KD-Tiny"]
    assert rows == [
        ["1", "Slow & sure", "0.400", "1", "0.1000", "0 of 1", "0.0400"],
        ["2", "Quick", "0.510 ± 0.014", "2", "–", "–", "0.0510 ± 0.0014"],
    ]


def test_a_run_that_diverged_is_left_out_by_name(tmp_path, no_plot, monkeypatch):
    sheets, real = [], battle_report.labelled_sheet
    monkeypatch.setattr(
        battle_report,
        "labelled_sheet",
        lambda rows, labels, *rest, **options: sheets.append(labels) or real(rows, labels, *rest, **options),
    )
    folder = make_battle(tmp_path, seeds=(0, 1))
    make_cell(folder, "wild", 0, float("nan"))
    change_config(folder, {}, ["wild"])
    tell(folder)
    text = (folder / "battle.md").read_text(encoding="utf-8")
    assert "Wild, seed 0, is left out: its held-out loss is not finite at 100 images." in text
    assert [row[1] for row in rows_of(folder, "At equal images")[1:]] == ["Slow & sure", "Quick", "Even"]
    # The sheet is of the first seed, and so are its losses.
    assert sheets == [["Slow & sure\nloss 0.4", "Quick\nloss 0.5", "Even\nloss 0.53"]]


def test_distances_of_other_kinds_or_other_images_do_not_share_a_column(tmp_path, no_plot):
    folder = make_battle(tmp_path, seeds=(0,), networks=("quick", "slow"))
    make_cell(folder, "few", 0, 0.3, kd=KD | {"value": 0.02, "samples": 64})
    make_cell(folder, "long", 0, 0.2, curve=[[100, 0.4], [500, 0.2]])
    make_cell(folder, "none", 0, 0.6, kd=None)
    change_config(folder, {}, ["few", "long", "none"])
    shutil.rmtree(folder / "timing")
    tell(folder)
    text = (folder / "battle.md").read_text(encoding="utf-8")
    assert "no machine yet" in text and "At equal counted" not in text and "What the networks cost" not in text
    head, *rows = rows_of(folder, "At equal images: 400")
    first = head.index("KD-Tiny (64 samples)")
    values = {row[1]: (row[first], row[head.index("KD-Tiny (512 samples)")]) for row in rows}
    assert values == {
        "Few": ("0.02000", "–"),
        "Quick": ("–", "0.05000"),
        "Slow & sure": ("–", "0.04000"),
        "Long": ("–", "–"),
        "None": ("–", "–"),
    }


def test_the_words_for_a_sweep(tmp_path, no_plot):
    folder = make_battle(tmp_path, seeds=(0,), extractor=None)
    shutil.rmtree(folder / "frechet")
    shutil.rmtree(folder / "sweep")
    make_sweep(folder, "quick", {0.001: 0.5, 0.01: 0.6, 0.1: float("nan")})
    make_sweep(folder, "slow", {0.01: 0.4})
    tell(folder)
    assert rows_of(folder, "Sweep")[1:] == [
        ["Quick", "0.5", "0.6", "diverged", "0.001"],
        ["Slow & sure", "–", "0.4", "–", "0.01"],
    ]
    text = (folder / "battle.md").read_text(encoding="utf-8")
    assert "a better one may lie beyond, for: Quick." in text and "Fréchet" not in text


def test_folders_that_hold_no_battle_or_a_broken_one(tmp_path):
    with pytest.raises(ValueError, match=r"holds no battle \(no study.json of one\); name the folder of one"):
        tell(tmp_path)
    change_config(tmp_path, {"battle": {"networks": None, "seeds": [0]}, "scores": {"extractor": None}}, ["one"])
    with pytest.raises(ValueError, match="holds no finished run.*run `brickwork battle`"):
        tell(tmp_path)
    path = make_cell(tmp_path, "one", 0, 0.5, curve=[[0, 1.0]])
    with pytest.raises(ValueError, match="One, seed 0, is left out: its curve has no point"):
        tell(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="one-seed0/cell.json' is no result"):
        tell(tmp_path)


def test_without_matplotlib_the_tables_are_there(tmp_path, monkeypatch):
    folder = make_battle(tmp_path, seeds=(0,))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    tell(folder)
    assert rows_of(folder, "At equal images: 400") and not (folder / "battle.png").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567, "1.23 MFLOP"),
        (999_700_000, "1.00 GFLOP"),
        (45.67e12, "45.7 TFLOP"),
        (4.5678e17, "457 PFLOP"),
        (12, "12 FLOP"),
    ],
)
def test_units(value, text):
    assert in_units(value, "FLOP") == text
