"""The scripts that train heads on a denoiser's features, from data to detector."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brickwork import LegoPipeline, LegoTransformer2DModel
from brickwork.eval.extractors.attributes import load_judge
from brickwork.eval.judge.crops import cut_out
from brickwork.eval.judge.denoiser_features import DenoiserFeatures
from brickwork.eval.judge.detectors import Detection, load_detector
from brickwork.eval.judge.label_head import LabelHead
from brickwork.eval.judge.scenes import make_scene
from brickwork.eval.judge.teachers import load_teacher
from brickwork.eval.judge.verdicts import Judge
from brickwork.eval.studies import planted_errors
from brickwork.eval.studies.planted_errors import main, scores_of
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.training import heads
from brickwork.training.heads import (
    Boxed,
    agreement,
    draw_samples,
    label_main,
    read_scenes,
    region_main,
    sample_score,
)


@pytest.fixture
def pipeline(tmp_path):
    torch.manual_seed(0)
    model = LegoTransformer2DModel(
        sample_size=16, num_classes=2, window_sizes=(8, 16), patch_sizes=(1, 4), num_layers=(1, 1), hidden_sizes=16,
        num_attention_heads=2,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    LegoPipeline(model.eval(), EDMHeunScheduler()).save_pretrained(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def test_heads_are_trained_saved_and_used(pipeline, tmp_path, capsys):
    few = ["shapes", "--model", pipeline, "--scenes", "6", "--held-out", "3", "--steps", "2"]
    few += ["--seeds", "3", "4", "--picture", str(tmp_path / "found.png")]
    region = [*few, "--teacher", "shapes", "--leave-out", "square", "--output", str(tmp_path / "region")]
    assert region_main("x", region) == 0
    told = capsys.readouterr().out
    assert "named by the teacher itself: trained" in told and "objects found by name: trained" in told
    assert (tmp_path / "region-4" / "config.json").is_file() and (tmp_path / "found.png").is_file()
    detector = load_detector(f"region-head:{tmp_path / 'region'}", "cpu")
    (found,) = detector([make_scene(np.random.default_rng(0)).draw(16)], [["square"]])
    assert set(found) == {"square"} and detector.head.config.pipeline == pipeline
    with pytest.raises(ValueError, match="--overwrite"):
        region_main("x", region)
    assert label_main("x", [*few, "--output", str(tmp_path / "label")]) == 0
    assert "mean overlap by noise level, shapes: 0.05: " in capsys.readouterr().out
    assert list(LabelHead.from_pretrained(tmp_path / "label").config.names) == ["circle", "square", "triangle"]
    with pytest.raises(ValueError, match="there is no such head; train one"):
        load_detector(f"region-head:{tmp_path}", "cpu")


def test_a_label_head_is_measured_on_samples_of_classes_that_it_knows(pipeline):
    pipe = LegoPipeline.from_pretrained(pipeline)
    pipe.transformer.register_to_config(id2label={"0": "cat", "1": "micah"})
    features = DenoiserFeatures(pipe)
    asked = []
    features.pipeline = lambda **given: asked.extend(given["class_labels"]) or pipe(**given)
    head = LabelHead(features.channels, ["bottts", "micah"], features.size).eval()
    pictures, classes = draw_samples(features, ["bottts", "micah"], 3, steps=1)
    assert classes == ["micah"] * 3 and asked == [1, 1, 1]
    assert 0 <= sample_score(head, features, pictures, classes) <= 1
    with pytest.raises(ValueError, match="draws none of bottts"):
        draw_samples(features, ["bottts"], 3)


def test_the_head_is_compared_with_the_attribute_judge():
    judge, picture = load_judge(), torch.full((3, 64, 64), 255, dtype=torch.uint8)
    picture[:, 16:48, 16:48] = torch.randint(0, 90, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    crop = cut_out(picture.permute(1, 2, 0).numpy(), (slice(16, 48), slice(16, 48)))
    said = judge.name(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None])[0]["style"]
    other = next(style for style in judge.attributes["style"] if style != said)
    scene = Boxed(picture, torch.tensor([[0.25, 0.25, 0.75, 0.75], [0, 0, 0.2, 0.2]]), (said, other))

    def detector(sure):
        def found(pictures, names):
            boxes = {name: Detection((16.0, 16.0, 48.0, 48.0), score) for name, score in sure.items()}
            return [{name: [boxes[name]] if name in boxes else [] for name in names[0]}]

        return found

    assert agreement(detector({said: 0.9, other: 0.4}), [scene]) == {"found": 0.5, "head": 1, "judge": 1, "agree": 1}
    assert agreement(detector({said: 0.4, other: 0.9}), [scene]) == {"found": 0.5, "head": 0, "judge": 1, "agree": 0}
    assert agreement(detector({}), [scene]) == {"found": 0.0}


def test_scenes_of_avatars_are_read(tmp_path):
    from datasets import Dataset, Image

    boxes = [{"box": [0.1, 0.2, 0.5, 0.9], "label": "micah", "text": "a micah"}]
    rows = {"image": [np.full((40, 24, 3), 200, np.uint8)] * 2, "text": ["x"] * 2, "boxes": [json.dumps(boxes)] * 2}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    (scene, _) = read_scenes(str(tmp_path), 32, 5)
    assert scene.picture.shape == (3, 32, 32) and scene.names == ("micah",)
    assert scene.boxes[0].tolist() == pytest.approx([0.1, 0.2, 0.5, 0.9]) and scene.mask(["micah"]).sum() == 0
    Dataset.from_dict({key: rows[key] for key in ("image", "text")}).cast_column("image", Image()).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match="which has no boxes; build it with"):
        read_scenes(str(tmp_path), 32, 5)


def test_boxes_are_named_by_an_attribute_that_some_have(tmp_path, monkeypatch):
    from datasets import Dataset, Image

    kinds = [{"label": "micah", "hair": "braids"}, {"label": "bottts"}, {"label": "pixel-art", "hair": "bald"}]
    boxes = [{"box": [0.1 + i / 4, 0.2, 0.3 + i / 4, 0.9], **kind} for i, kind in enumerate(kinds)]
    rows = {"image": [np.full((16, 16, 3), 200, np.uint8)], "boxes": [json.dumps(boxes)]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    (scene,) = read_scenes(str(tmp_path), 16, 5, attribute="hair")
    assert scene.names == ("braids", "", "") and [name for _, name in scene.named()] == ["braids"]
    with pytest.raises(ValueError, match="`names` is 'hair', and shapes have a label alone"):
        read_scenes("shapes", 16, 5, attribute="hair")
    with pytest.raises(ValueError, match="`names` is 'hat', which no box of .* has; give label"):
        read_scenes(str(tmp_path), 16, 5, attribute="hat")

    # What has no name is an object for the boxes and the image branch, and nothing for the text branch.
    given = []
    monkeypatch.setattr(heads, "region_losses", lambda *args: given.append(args) or {"x": args[0].background.sum()})
    task = heads.RegionTask(
        [scene], [torch.zeros(1, 4, 8, 8)], load_teacher("avatar-attributes"), [torch.zeros(3, 112)], 0
    )
    features = SimpleNamespace(channels=[4], to_dict=dict)
    assert list(heads.train_region_head(task, features, [], 1).config.names) == ["braids"]
    classes, objects = given[0][3], given[0][7]
    assert (classes[:, 0] == 0).all() and (classes[:, 1:3] == heads.UNNAMED).all() and objects[:, :3].all()
    with pytest.raises(ValueError, match="`leave_out` has ''"):
        heads.train_region_head(task, features, [""], 1)


def test_masks_lie_within_boxes_and_off_the_ground():
    (scene, *_) = read_scenes("shapes", 32, 2)
    mask = scene.mask(["circle", "square", "triangle"])
    assert set(mask.unique().tolist()) == {0, *(["circle", "square", "triangle"].index(n) + 1 for n in scene.names)}
    left, top, right, bottom = (scene.boxes[0] * 32).round().int().tolist()
    assert mask[top:bottom, left:right].gt(0).any() and 0.02 < mask.gt(0).float().mean() < 0.4


def test_the_study_of_planted_errors(capsys, monkeypatch):
    scores = scores_of(Judge(load_detector("shapes")), 20, 0)
    assert set(scores) == {"dropped", "moved", "recoloured", "doubled", "any"} and scores["any"][1] == 1.0
    assert main(["--detector", "shapes", "--count", "5", "--seeds", "0", "1"]) == 0
    assert "recoloured" in capsys.readouterr().out
    assert main(["--detector", "shapes", "--count", "5", "--seeds", "0", "--new", "circle"]) == 0
    told = capsys.readouterr().out
    assert "without circle" in told and "with one of circle" in told
    kinds = [{error: (float("nan"), 0.0) for error in ("dropped", "any")}, {"dropped": (0.5, 0.0), "any": (0.5, 1.0)}]
    with monkeypatch.context() as patch:
        patch.setattr(planted_errors, "scores_of", lambda judge, count, seed, **how: kinds[seed])
        judge = Judge(load_detector("shapes"))
        assert "dropped        0.5" in planted_errors.table_of([judge], 5, [0, 1]).text()
        assert "–" in planted_errors.table_of([judge], 5, [0]).text()
    with pytest.raises(ValueError, match="`--names` is 'hair', which is of avatars"):
        main(["--detector", "shapes", "--names", "hair"])
    with pytest.raises(ValueError, match="`new` has 'circles'"):
        main(["--detector", "shapes", "--new", "circles"])
