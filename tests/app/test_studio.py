"""The studio below the browser: what its addresses answer."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import brickwork
from brickwork.app.compare import Comparison, variants
from brickwork.app.drawing import Settings, checked, draw
from brickwork.app.gallery import keep, listing, notes_of

LEGO = {"model": "lego-avatars-64", "steps": 2, "height": 32, "width": 32, "label": "micah"}
AVATAR = {
    "model": "avatars-sd-64",
    "prompt": "a happy micah person with red hair",
    "steps": 2,
    "height": 32,
    "width": 32,
}
RESADAPTER = "avatars-sd-64/resadapter"


def test_what_can_be_set_is_said_of_a_pipeline(running):
    facts = running.finished(running.post("load", model="lego-avatars-64"))["result"]
    assert facts["kind"] == "LegoPipeline" and facts["native"] == 64 and not facts["prompt"]
    assert "micah" in facts["classes"]
    assert {"full", "fast"} <= set(facts["schedules"]) and facts["adapters"] == []


def test_a_picture_is_drawn_with_its_settings_and_drawn_again_from_them(running):
    job = running.finished(running.post("draw", **LEGO, count=3, seed=5))
    assert job["state"] == "done", job
    pictures = job["result"]["pictures"]
    assert [picture["settings"]["seed"] for picture in pictures] == [5, 6, 7]
    assert job["step"] == job["steps"] == 2 and job["result"]["operations"] > 0
    status, content = running.request(f"/pictures/{pictures[2]['picture']}")
    assert status == 200 and content.startswith(b"\x89PNG")
    notes = running.get("notes", picture=pictures[2]["picture"])
    assert notes["settings"] == pictures[2]["settings"] and notes["seconds"] > 0
    again = running.finished(running.post("draw", **notes["settings"]))["result"]["pictures"]
    first, second = (np.asarray(Image.open(running.output / p["picture"])) for p in (pictures[2], again[0]))
    assert np.abs(first.astype(int) - second).max() <= 1  # drawn alone, its sums are rounded otherwise
    assert [p["picture"] for p in running.get("gallery")["pictures"]][0] == again[0]["picture"]


def test_operations_are_those_of_the_schedule():
    pipe = brickwork.LegoPipeline.from_pretrained(brickwork.pretrained("lego-avatars-64"))
    pipe.set_progress_bar_config(disable=True)
    previews = []
    settings = Settings(**LEGO, schedule="full", guidance=2)
    drawing = draw(pipe, settings, {}, lambda step, steps, preview: previews.append(preview))
    schedule = brickwork.BrickSchedule.full(pipe.transformer)
    expected = schedule.operations(pipe.transformer, pipe.scheduler, 8, 8)  # four pixels a latent
    assert drawing.operations == 2 * expected
    assert previews[0].size == (32, 32) and len(previews) == 2


def test_full_and_fast_are_compared(running):
    job = running.finished(running.post("compare", settings=LEGO | {"steps": 4}, schedules=["full", "fast"]))
    full, fast = job["result"]["rows"]
    assert (full["caption"], fast["caption"]) == ("full", "fast")
    assert fast["operations"] < full["operations"] and min(full["seconds"], fast["seconds"]) > 0
    assert full["pictures"][0]["settings"]["seed"] == fast["pictures"][0]["settings"]["seed"]


def test_an_adapter_goes_on_at_several_strengths_and_off(running):
    facts = running.finished(running.post("adapter", model="avatars-sd-64", adapter=RESADAPTER))["result"]
    assert facts["adapters"] == [RESADAPTER] and facts["prompt"]
    wanted = {"settings": AVATAR, "adapter": RESADAPTER, "strengths": [0, 0.5, 1]}
    job = running.finished(running.post("compare", **wanted))
    assert job["state"] == "done", job
    assert [row["caption"] for row in job["result"]["rows"]] == ["adapter off", "adapter 0.5", "adapter 1"]
    drawn = [np.asarray(Image.open(running.output / r["pictures"][0]["picture"])) for r in job["result"]["rows"]]
    assert not (drawn[0] == drawn[1]).all() and not (drawn[1] == drawn[2]).all()
    off = running.finished(running.post("draw", **AVATAR))["result"]["pictures"][0]  # loaded, but not named
    assert (np.asarray(Image.open(running.output / off["picture"])) == drawn[0]).all()
    gone = {"model": "avatars-sd-64", "adapter": RESADAPTER, "unload": True}
    assert running.finished(running.post("adapter", **gone))["result"]["adapters"] == []
    again = running.finished(running.post("draw", **job["result"]["rows"][2]["pictures"][0]["settings"]))
    same = Image.open(running.output / again["result"]["pictures"][0]["picture"])
    assert (np.asarray(same) == drawn[2]).all()  # what the settings name is loaded anew
    running.finished(running.post("adapter", **gone))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "lego-avatars-46"}, "did you mean 'lego-avatars-64'"),
        ({"model": "empty"}, "holds no pipeline"),
        ({"model": "/etc"}, "--root"),
        ({"model": "../elsewhere"}, "--root"),
        ({"model": "runs/one"}, "no pipeline yet"),
        (LEGO | {"label": "smiley"}, "class"),
        (LEGO | {"prompt": "a cat"}, "draws no text"),
        (AVATAR | {"prompt": " "}, "`prompt` is empty"),
        (AVATAR | {"width": 33}, "multiples of"),
        (LEGO | {"schedule": "slow"}, "subnet"),
        (LEGO | {"steps": 0}, "`steps` is"),
        (LEGO | {"guidance": "much"}, "`guidance` is"),
        (LEGO | {"colour": "red"}, "`colour` is"),
        (LEGO | {"revision": "main"}, "on this machine, not on the hub"),
        (LEGO | {"revision": "../main"}, "`revision` is"),
        (LEGO | {"variant": "fp16"}, "fp16"),
        ({"steps": 2}, "`model` is missing"),
    ],
)
def test_bad_input_is_one_line(running, values, words):
    answer = running.post("draw", **values)
    message = answer.get("error") or running.finished(answer)["message"]
    assert words in message and "\n" not in message
    assert not list(running.output.glob("*.part*"))


def test_a_drawing_can_be_stopped(running):
    job = running.post("draw", **LEGO | {"steps": 900})
    while running.get("job", job=str(job["number"]))["step"] < 1:
        pass
    running.post("stop", job=job["number"])
    assert running.finished(job)["state"] == "stopped"
    assert running.finished(running.post("draw", **LEGO))["state"] == "done"


def test_a_run_is_watched(running):
    assert running.get("lists")["runs"] == [str(running.root / "runs" / "one")]
    run = running.get("run", run="runs/one")
    assert run["images"] == 300 and not run["pipeline"] and run["samples"] == ["images-000000000300.png"]
    assert {"train/loss", "loss_at"} == {plot["title"] for plot in run["plots"]}
    assert run["plots"][0]["series"]["train/loss"][-1] == [300, pytest.approx(1 / 300)]
    assert running.request("/samples/images-000000000300.png?run=runs/one")[0] == 200
    assert running.request("/samples/..%2Fconfig.yaml?run=runs/one")[0] == 404
    assert "no training run" in running.get("run", run="empty")["error"]


def test_a_sweep_draws_its_sheet(running):
    values = {"model": "lego-avatars-64", "sizes": [32, 64], "steps": 1, "name": "small"}
    state = running.post("sweep", **values)
    assert state["running"]
    assert "still running" in running.post("sweep", **values)["error"]
    running.studio.sweeps._process.wait(240)
    state = running.get("sweep/state", name="small")
    assert state["sheet"] and not state["running"], state["log"]
    assert running.request("/sheets/small")[1].startswith(b"\x89PNG")
    assert "`name` is" in running.post("sweep", **values | {"name": "../x"})["error"]
    assert "`ratios" in running.post("sweep", **values | {"ratios": ["--overwrite"]})["error"]


def test_what_is_not_in_the_gallery_is_not_shown(running):
    (running.output / "foreign.png").write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(running.output / "plain.png")
    (running.output / "link.png").symlink_to("/etc/hostname")
    listed = [picture["picture"] for picture in running.get("gallery")["pictures"]]
    assert not {"foreign.png", "plain.png", "link.png"} & set(listed)
    assert notes_of(running.output / "plain.png") == {}
    for name in ("..%2F..%2Fetc%2Fhostname", "link.png", "nothing.png"):
        assert running.request(f"/pictures/{name}")[0] == 404
    assert running.request("/page/..%2Fserver.py")[0] == 404


@pytest.mark.parametrize(
    "notes", ["", "[]", "{}", '{"model": "m", "seconds": NaN}', '{"model": "m", "no": 1}', "[" * 9000]
)
def test_metadata_of_others_are_checked(tmp_path, notes):
    from brickwork.eval.report.pictures import save_picture

    save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.png", notes={"brickwork": notes})
    assert notes_of(tmp_path / "a.png") == {} and listing(tmp_path) == []


def test_links_do_not_leave_the_roots(running, tmp_path):
    pipe = brickwork.pretrained("lego-avatars-64")
    (running.root / "out").symlink_to(pipe)
    assert "--root" in running.post("load", model="out")["error"]
    assert "--root" in running.post("load", model=str(pipe))["error"]


def test_comparisons_need_two():
    with pytest.raises(ValueError, match="two of either"):
        variants(checked(Comparison, {"settings": LEGO, "schedules": ["full"]}))
    with pytest.raises(ValueError, match="name it"):
        variants(checked(Comparison, {"settings": LEGO, "strengths": [0, 1]}))
    with pytest.raises(ValueError, match="strengths"):
        checked(Comparison, {"settings": LEGO, "adapter": "a", "strengths": [math.inf]})


def test_settings_survive_a_png(tmp_path):
    settings = Settings(model="m", prompt="ein rotes Äpfelchen 🍎", adapters={"a": 0.5})
    name = keep(tmp_path, Image.new("RGB", (8, 8)), settings, 1.5, 10)
    assert notes_of(tmp_path / name) == {"settings": settings.model_dump(), "seconds": 1.5, "operations": 10}
    assert json.loads(Image.open(tmp_path / name).text["brickwork"])["prompt"] == settings.prompt
