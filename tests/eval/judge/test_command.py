"""`brickwork judge`, and the judge as a metric of `evaluate calc`."""

import json

import numpy as np
import pytest
from PIL import Image

from brickwork import cli
from brickwork.eval.judge.flat_ground import ShapeDetector
from brickwork.eval.judge.scenes import make_scene, plant
from brickwork.eval.judge.verdicts import Judge
from brickwork.eval.metrics.calculate import calculate
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.metrics.registry import MetricSettings, is_higher_better


@pytest.fixture
def samples(tmp_path):
    """Six scenes with captions; in the first two a shape is missing."""
    random, rows = np.random.default_rng(3), []
    (tmp_path / "samples").mkdir()
    for i in range(6):
        scene = make_scene(random)
        shown = plant(scene, "dropped", random) if i < 2 else scene
        Image.fromarray(shown.draw(48)).save(tmp_path / "samples" / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": scene.asked.prompt})
    (tmp_path / "samples" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "samples"


def test_the_command_writes_json_and_a_page(samples, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["judge", str(samples), "--detector", "shapes", "-o", str(output)]
    assert cli.main(arguments) == 0
    assert "position" in (printed := capsys.readouterr().out) and "0.6667" in printed
    found = json.loads((output / "judgement.json").read_text())
    assert [one["correct"] for one in found["pictures"]] == [False, False, True, True, True, True]
    assert found["overall"] == pytest.approx(4 / 6) and found["judge"]["detector"] == "shapes"
    assert found["pictures"][0]["name"] == "0.png" and found["pictures"][0]["include"][1]["position"][1] == 0
    page = (output / "index.html").read_text()
    assert "The first 2 of 2." in page and "missing" in page and (output / "wrong-000001.png").is_file()
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_requirements_replace_captions(samples, tmp_path, capsys):
    rows = [{"include": [{"class": "circle", "count": 1}], "file_name": f"{i}.png"} for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["judge", str(samples), "--detector", "shapes", "--limit", "3", "-o"]
    assert cli.main([*arguments, str(tmp_path / "a"), "--requirements", str(tmp_path / "asked.jsonl")]) == 0
    assert cli.main([*arguments, str(tmp_path / "b"), "--prompt", "a circle"]) == 0
    first, second = (json.loads((tmp_path / name / "judgement.json").read_text()) for name in "ab")
    assert [one["correct"] for one in first["pictures"]] == [one["correct"] for one in second["pictures"]]
    assert len(second["pictures"]) == 3 and list(second["categories"]) == ["single_object"]
    capsys.readouterr()
    for further, message in (
        (["--prompt", "beautiful"], "is 'beautiful', which names nothing that can be judged"),
        (["--prompt", "a dog"], "which names nothing that can be judged"),
        (["--prompt", "a circle", "--requirements", str(tmp_path / "asked.jsonl")], "give one of them"),
        (["--prompt", "a circle", "--threshold", "2"], "`--threshold` is 2.0"),
        (["--requirements", str(tmp_path / "none.jsonl")], "there is no such file"),
    ):
        assert cli.main([*arguments, str(tmp_path / "c"), *further]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_judge_is_a_metric(samples, extractor, tmp_path, capsys, monkeypatch):
    reference = make_reference(samples, extractor, "clean", progress=False)
    settings, judge = MetricSettings(("kd", "judge"), subsets=2), Judge(ShapeDetector())
    result = calculate([samples], reference, extractor, settings, judge=judge, progress=False)
    assert result["metrics"]["judged"]["mean"] == result["metrics"]["judged position"]["mean"] == pytest.approx(4 / 6)
    assert result["metrics"]["judged"]["settings"]["detector"] == "shapes" and is_higher_better("judged position")
    with pytest.raises(
        ValueError, match="`metrics` has 'judge', which needs judge, and there is no judge; pass --judge"
    ):
        calculate([samples], reference, extractor, settings, progress=False)
    with pytest.raises(ValueError, match="`calculate` has 'juge', which it does not take; did you mean 'judge'"):
        calculate([samples], reference, extractor, settings, juge=judge, progress=False)
    reference.save(tmp_path / "r.safetensors")
    monkeypatch.setattr("brickwork.eval.extractors.features.load_extractor", lambda *_: extractor)
    command = ["evaluate", "calc", str(samples), "--reference", str(tmp_path / "r.safetensors"), "--metrics", "kd"]
    command += ["--judge", "shapes", "--device", "cpu", "-o", str(tmp_path / "result.json")]
    assert cli.main(command) == 0
    assert "judged" in capsys.readouterr().out
    (samples / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "x"}))
    assert cli.main([*command, "--overwrite"]) == 2
    assert "needs captions" in capsys.readouterr().err
