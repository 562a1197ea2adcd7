"""`brickwork train my-pictures`: what is chosen for a folder that nobody has described, that it trains and draws."""

import json

import numpy as np
import pytest
from PIL import Image

from brickwork.cli import main
from brickwork.training.commands import own_captions, own_pictures
from brickwork.training.commands.looked_at import look_at
from brickwork.training.config.config import load_config
from brickwork.training.config.latent import TextToImageConfig


def draw(path, height=40, width=48, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """48 pictures of 48 × 40 pixels in folders of classes; the working directory is the folder above."""
    for number in range(48):
        draw(tmp_path / "my-pictures" / ("cats", "dogs", "birds")[number % 3] / f"{number}.png", seed=number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(own_pictures, "images_per_second", lambda config, classes: 100.0)
    return tmp_path / "my-pictures"


def chosen(source, *overrides):
    values, said = own_pictures.choose(str(source), list(overrides))
    return load_config(None, values), " ".join(said)


def test_a_folder_of_folders(pictures):
    config, said = chosen("my-pictures")
    assert (config.data.source, config.data.label_column, config.data.size) == ("my-pictures", "label", 32)
    assert (config.run.output_dir, config.run.batch_size, config.run.total_images) == ("runs/my-pictures", 16, 19200)
    assert config.data.held_out == 0
    for part in (
        "48 pictures, 3 classes: birds 16, cats 16, dogs 16",
        "tiny-lego at 32 pixels",
        "about 3 min at 100",
        "Then: brickwork generate runs/my-pictures",
    ):
        assert part in said


def test_one_picture_trains_and_is_said_to_be_too_few(pictures, tmp_path):
    draw(tmp_path / "one" / "a.png")
    config, said = chosen("one")
    assert config.run.batch_size == 1
    assert "one: 1 picture, which will be learnt by heart (add more to draw others), no classes" in said
    assert "1 image a step." in said


def test_one_folder_within_the_folder_is_no_class(tmp_path, monkeypatch, pictures):
    for number in range(6):
        draw(tmp_path / "mine" / "all" / f"{number}.png", seed=number)
    config, said = chosen("mine")
    assert config.data.label_column is None and "6 pictures, no classes" in said
    assert chosen("mine", "data.label_column=label")[0].data.label_column == "label"  # unless it is told


def test_a_short_run_does_not_stop_for_pictures_all_the_time(pictures):
    """They take seconds: at least twenty of training lie between them, and the last are drawn at the end anyway."""
    assert chosen("my-pictures", "run.total_images=640")[0].run.sample_images == 2000
    assert chosen("my-pictures", "run.total_images=64000")[0].run.sample_images == 8000


def test_what_is_given_beats_what_was_chosen(pictures):
    config, said = chosen("my-pictures", "run.total_images=8", "optimizer.learning_rate=3e-4", "run.output_dir=here")
    assert (config.run.total_images, config.run.batch_size, config.run.log_images) == (8, 8, 8)
    assert (config.optimizer.learning_rate, config.run.output_dir) == (3e-4, "here")
    config, said = chosen("my-pictures", "data.size=50")
    assert config.model.config["patch_sizes"] == [2, 2]
    assert "Pictures below 50 pixels are enlarged" in said
    config, said = chosen("my-pictures", "model.type=BlockUNet2DModel", "model.config={block_types: resnet}")
    assert (config.model.config, config.objective.brick_dropout) == ({"block_types": "resnet"}, 0)
    assert "Chosen: BlockUNet2DModel" in said
    assert chosen("my-pictures", "model.config.mlp_ratio=2.0")[0].model.config["window_sizes"] == [32, 8]


def test_small_pictures_make_the_size_smaller(pictures, tmp_path):
    for number in range(3):
        draw(tmp_path / "small" / f"{number}.jpg", 22, 19)
    config, said = chosen(tmp_path / "small")
    assert (config.data.size, config.model.config["window_sizes"], config.data.label_column) == (16, [16, 8], None)
    assert config.run.batch_size == 3
    assert "at 16 pixels" in said and "no classes" in said


def test_captions_and_tables(pictures, tmp_path):
    for number in range(4):
        draw(tmp_path / "captioned" / f"{number}.png")
        (tmp_path / "captioned" / f"{number}.txt").write_text(f"picture {number}")
    said = chosen(tmp_path / "captioned", "model.preset=tiny-lego")[1]
    assert "Captions (text) are there, which this network does not read" in said
    assert f"brickwork train {tmp_path / 'captioned'} model.base=" in said
    assert main(["data", "select", "my-pictures", "--output", "some.parquet", "--where", "label=cats,dogs"]) == 0
    config, said = chosen("some.parquet")
    assert config.run.output_dir == "runs/some"
    assert "32 pictures, 2 classes: cats 16, dogs 16" in said


@pytest.fixture
def captioned(pictures, tmp_path, monkeypatch):
    for number in range(4):
        draw(tmp_path / "captioned" / f"{number}.png")
        (tmp_path / "captioned" / f"{number}.txt").write_text(f"picture {number}")
    monkeypatch.setattr(own_captions, "images_per_second", lambda pipeline, config: 10.0)
    return tmp_path / "captioned"


def test_captions_without_classes_go_to_the_text_to_image_model_that_ships(captioned):
    values, said = own_pictures.choose("captioned", ["run.total_images=8"])
    config = load_config(None, values, TextToImageConfig)
    assert (config.model.base, config.parts.train) == (own_captions.shipped_base(), "unet_and_text")
    assert (config.data.caption_column, config.resolution.max_size, config.run.batch_size) == ("text", 64, 4)
    assert config.data.max_upscale == 1.6  # pictures of 48 × 40 at 64 pixels
    assert any("text to image, from" in line for line in said) and "--prompt TEXT" in said[-1]
    # A value that such a model does not have asks for a network without captions.
    assert not own_captions.wanted(look_at("captioned"), ["data.size=32"])


def test_which_captions_are_meant_is_asked_once(captioned):
    (captioned / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "title": "a", "caption": "b"}))
    with pytest.raises(ValueError, match="could be .* say which with `data.caption_column`"):
        own_pictures.choose("captioned", [])
    values, _ = own_pictures.choose("captioned", ["data.caption_column=title"])
    assert load_config(None, values, TextToImageConfig).data.caption_column == "title"
    with pytest.raises(ValueError, match="captions is not there"):
        own_pictures.choose("my-pictures", [f"model.base={own_captions.shipped_base()}"])


def test_captions_train_and_are_drawn(captioned, tmp_path, capsys):
    assert main(["train", "captioned", "run.total_images=4", "samples.count=0", "--quiet"]) == 0
    assert main(["train", "captioned", "run.total_images=8"]) == 0
    assert "Going on" in capsys.readouterr().out
    words = ["generate", "runs/captioned", "--prompt", "picture 1", "--steps", "1", "-n", "1", "-o", "drawn"]
    assert main(words) == 0 and (tmp_path / "drawn" / "picture-1-000000.png").is_file()


def test_which_column_is_the_class_is_asked_once(pictures):
    rows = [
        {"file_name": f"cats/{number}.png", "style": "x", "class": number % 2, "target": 1} for number in (0, 3, 6)
    ]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="'class' and 'target' could be meant; say which with `data.label_column`"):
        chosen("my-pictures")
    assert chosen("my-pictures", "data.label_column=class")[0].data.label_column == "class"
    assert chosen("my-pictures", "data.label_column=null")[0].data.label_column is None
    with pytest.raises(ValueError, match="`data.label_column` is 'clas'; did you mean class"):
        chosen("my-pictures", "data.label_column=clas")
    assert 'data.label_column="target"' in own_pictures.described("my-pictures", ["data.label_column=target"])


def test_a_label_for_each_picture_is_no_class(pictures, tmp_path):
    lines = [{"file_name": f"{number}.png", "label": f"name {number}"} for number in range(3)]
    for line in lines:
        draw(tmp_path / "named" / line["file_name"])
    (tmp_path / "named" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert chosen(tmp_path / "named")[0].data.label_column is None


def test_mistakes_are_one_line(pictures, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    for words, message in {
        ("my-picturse",): "which is not there; did you mean 'my-pictures'",
        ("empty",): "a folder without pictures",
        ("broken",): "no picture can be read",
        ("my-pictures", "broken"): "name one folder or file",
        ("my-pictures", "run.batch=3"): "Unknown key `run.batch`",
        ("my-pictures", "total_images=3"): "did you mean `run.total_images`",
        ("my-pictures", "run.seed"): "no `section.key=value`",
    }.items():
        assert main(["train", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "my-pictures"]) == 2
    assert "for one process" in capsys.readouterr().err


def test_a_preset_takes_pictures_too(pictures, capsys):
    assert main(["train", "my-pictures", "--preset", "tiny-dit", "--dry-run", "run.total_images=8"]) == 0
    out = capsys.readouterr().out
    assert "of 3 classes to train on" in out


def test_it_trains_goes_on_and_draws(pictures, tmp_path, capsys):
    short = ["run.total_images=8", "samples.count=0", "model.config.num_layers=[1, 1]"]
    assert main(["train", "my-pictures", *short]) == 0
    assert main(["train", "my-pictures", "run.total_images=16"]) == 0  # as it began, but longer
    assert "Going on" in capsys.readouterr().out
    saved = load_config("runs/my-pictures/config.yaml")
    assert (saved.run.total_images, saved.run.batch_size, saved.model.config["num_layers"]) == (16, 8, [1, 1])
    assert main(["generate", "runs/my-pictures", "--steps", "1", "--count", "1", "--output", "drawn"]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3
    draw(tmp_path / "other" / "my-pictures" / "a.png")
    assert main(["train", "other/my-pictures"]) == 2
    assert "which holds a run on 'my-pictures'" in capsys.readouterr().err


def test_a_run_without_a_pipeline_is_named(tmp_path, capsys):
    for name in ("config.yaml", "starts.jsonl"):
        (tmp_path / name).write_text("{}")
    assert main(["generate", str(tmp_path)]) == 2
    assert "a run that has left no pipeline yet" in capsys.readouterr().err


def test_the_rate_is_measured(pictures, monkeypatch):
    monkeypatch.undo()
    values = ["model.type=BlockTransformer2DModel", "model.config={num_layers: 1, hidden_size: 64}", "data.size=8"]
    config = load_config(None, [*values, "run.batch_size=2", "run.mixed_precision=no"])
    assert own_pictures.images_per_second(config, ["a", "b"]) > 0
