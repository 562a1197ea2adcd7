"""`generate --keep-best`: draws more, keeps those that fit best."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from brickwork import ClassToImagePipeline, cli
from brickwork.eval.extractors.attributes import load_judge
from brickwork.eval.judge.grammar import read_caption
from brickwork.eval.judge.scenes import COLOURS, Scene, Shape
from brickwork.eval.judge.scores import keep_best, load_score
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler


@pytest.fixture
def pipeline(tmp_path):
    torch.manual_seed(0)
    network = BlockTransformer2DModel(
        in_channels=3, num_classes=2, sample_size=8, hidden_size=16, num_layers=1, attention_head_dim=8,
        id2label={0: "micah", 1: "bottts"},
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ClassToImagePipeline(network, EDMHeunScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def draw(name, colour):
    shapes = (Shape(name, colour, (0.2, 0.3, 0.6, 0.7)),)
    return Image.fromarray(Scene(shapes, read_caption("a circle")).draw(32))


def test_the_best_of_each_class_are_kept_in_their_order():
    pictures = [draw("circle", "red"), draw("square", "red"), draw("circle", "blue"), draw("square", "blue")]
    drawn = [(f"{group}{i}", picture) for group in "ab" for i, picture in enumerate(pictures)]
    score = load_score("shapes")
    kept = list(keep_best(drawn, list("aaaabbbb"), 2, score, {"a": "a red circle", "b": "square"}.get))
    assert [key for key, *_ in kept] == ["a0", "a1", "b1", "b3"] or [key for key, *_ in kept] == [
        "a0",
        "a2",
        "b1",
        "b3",
    ]
    assert kept[0][2] > 1 > kept[1][2] and len(COLOURS) == 8


def test_the_command_keeps_what_the_judge_of_attributes_likes_best(pipeline, tmp_path, capsys):
    arguments = ["generate", str(pipeline), "--steps", "1", "-n", "5", "--device", "cpu", "-o"]
    assert cli.main([*arguments, str(tmp_path / "all")]) == 0
    assert cli.main([*arguments, str(tmp_path / "best"), "--keep-best", "2", "--score", "avatar-attributes"]) == 0
    assert "wrote 4 images" in capsys.readouterr().out
    judge = load_judge()
    for style in ("micah", "bottts"):
        files = sorted((tmp_path / "all").glob(f"{style}-*.png"))
        pictures = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
        with torch.no_grad():
            scores = judge.logits(pictures)["style"].log_softmax(1)[:, judge.attributes["style"].index(style)]
        best = {files[i].name for i in scores.topk(2).indices.tolist()}
        kept = sorted((tmp_path / "best").glob(f"{style}-*.png"))
        assert {file.name for file in kept} == best
        for file in kept:
            assert file.read_bytes() != b"" and np.array_equal(
                Image.open(file), Image.open(tmp_path / "all" / file.name)
            )
            assert Image.open(file).info["Score"].endswith("by avatar-attributes")


def test_a_classifier_scores_by_its_label(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(
        **sizes, image_size=16, patch_size=8, id2label={0: "Cat", 1: "Dog"}, label2id={"Cat": 0, "Dog": 1}
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    score = load_score(f"classifier:{tmp_path}", "cpu")
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    shares = np.exp(score(pictures, "cat")) + np.exp(score(pictures, "dog"))
    np.testing.assert_allclose(shares, 1, rtol=1e-5)
    with pytest.raises(ValueError, match="has no 'cow'; choose one of cat, dog"):
        score(pictures, "cow")


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--keep-best", "2"], "goes with `--score`"),
        (["--score", "shapes"], "goes with `--score`"),
        (["--prompt", "a circle"], "for a text-to-image pipeline, or for --score"),
        (["--keep-best", "9", "--score", "shapes"], "`--keep-best` is 9 of `--count` 4"),
        (["--keep-best", "0", "--score", "shapes"], "`--keep-best` is 0; give a whole number from 1 up"),
        (["--keep-best", "1", "--score", "shape"], "`--score` is 'shape'; did you mean 'shapes'"),
        (["--keep-best", "1", "--score", "shapes", "--steps", "1"], "asks for 'micah', and shapes knows"),
    ],
)
def test_bad_input_is_one_line(pipeline, tmp_path, capsys, further, message):
    assert cli.main(["generate", str(pipeline), "--device", "cpu", "-o", str(tmp_path / "out"), *further]) == 2
    assert message in capsys.readouterr().err
