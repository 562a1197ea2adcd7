"""The commands that draw and tell: demo, generate, info."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

import brickwork
from brickwork import BrickSchedule, EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.eval.commands.demo import PROMPTS, spread_labels
from brickwork.eval.commands.generate import class_slugs, prompt_slugs
from brickwork.eval.sampling.pipelines import load_pipeline, pipeline_class
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.class_to_image import ClassToImagePipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = LegoTransformer2DModel(
        sample_size=16, num_classes=2, window_sizes=[16, 8], patch_sizes=[4, 2], num_layers=[1, 1], hidden_sizes=16,
        num_attention_heads=2, id2label={0: "cats", 1: "dogs"}, trained_subsets="any",
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    LegoPipeline(model, EDMHeunScheduler(), brick_schedule=BrickSchedule.fast(model)).save_pretrained(path)
    return path


def test_demo_draws_three_rows_and_says_what_they_cost(folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "demo.png"
    words = ["demo", "--weights", str(folder), "--output", str(output), "--images", "4", "--steps", "4"]
    words += ["--text-weights", ""]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "bricks 0+1 ×4" in text and "bricks 0 ×2, 0+1 ×2" in text
    assert "16 x 48" in text and text.count("GFLOP an image") == 3
    picture = Image.open(output)
    assert picture.width == 2 * 12 + 4 * 32 + 3 * 4  # four images of 16 pixels, twice as large, with gaps
    assert len(picture.getcolors(100_000)) > 20
    assert list(tmp_path.iterdir()) == [output]
    assert cli.main(words) == 2
    assert "is there already; name another, or add --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--images", "1", "--overwrite"]) == 0 and Image.open(output).width < picture.width


def test_demo_draws_by_text_and_by_a_searched_schedule_too(folder, tmp_path, capsys):
    """A row by text; a searched schedule is drawn with where one lies beside the weights."""
    words = ["demo", "--weights", str(folder), "--images", "2", "--steps", "2", "--output"]
    assert cli.main([*words, str(tmp_path / "with.png")]) == 0
    assert f"by text at 56, 64, 72 pixels with a ResAdapter: “{PROMPTS[0]}”" in capsys.readouterr().out
    assert cli.main([*words, str(tmp_path / "without.png"), "--text-weights", ""]) == 0
    larger, smaller = (Image.open(tmp_path / name) for name in ("with.png", "without.png"))
    assert larger.height - smaller.height == 2 * 72 + 18 + 12
    searched = tmp_path / "weights"
    shutil.copytree(folder, searched)
    pipe = LegoPipeline.from_pretrained(folder)
    (searched / "searched.json").write_text(json.dumps(BrickSchedule.fast(pipe.transformer).to_dict()))
    words = ["demo", "--weights", str(searched), "--images", "2", "--steps", "2", "--text-weights", "", "--output"]
    assert cli.main([*words, str(tmp_path / "searched.png")]) == 0
    assert "searched: the bricks that matter" in capsys.readouterr().out


def test_demo_rows_share_their_seeds(folder, tmp_path):
    """At the start of the first two rows is the same noise, so the first image is nearly the same picture."""
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        words = ["demo", "--weights", str(folder), "--images", "1", "--steps", "2", "--seed", seed]
        words += ["--text-weights", ""]
        assert cli.main([*words, "--output", str(tmp_path / f"{name}.png")]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("classes", "count", "labels"),
    [(None, 2, [None, None]), (3, 6, [0, 0, 1, 1, 2, 2]), (3, 4, [0, 0, 1, 2]), (3, 2, [0, 1]), (1000, 3, [0, 1, 2])],
)
def test_demo_shows_every_class(classes, count, labels):
    assert spread_labels(classes, count) == labels


def test_generate_writes_one_file_an_image(folder, tmp_path, capsys):
    words = ["generate", str(folder), "--count", "2", "--width", "24", "--steps", "2", "--batch-size", "3"]
    assert cli.main([*words, "--output", str(tmp_path / "all")]) == 0
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == ["cats-000000.png", "cats-000001.png", "dogs-000000.png", "dogs-000001.png"]
    assert Image.open(tmp_path / "all" / names[0]).size == (24, 16)
    # By name, alone, the same picture again.
    words = [
        "generate",
        str(folder),
        "--classes",
        "DOGS",
        "--seed",
        "1",
        "--count",
        "1",
        "--width",
        "24",
        "--steps",
        "2",
    ]
    assert cli.main([*words, "--output", str(tmp_path / "dogs")]) == 0
    (alone,) = (tmp_path / "dogs").iterdir()
    assert alone.name == "dogs-000001.png"
    first, second = Image.open(alone), Image.open(tmp_path / "all" / "dogs-000001.png")
    assert max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes())) <= 1


def test_generate_places_windows_as_told(folder, tmp_path, capsys):
    def draw(kind):
        words = ["generate", str(folder), "--count", "1", "--width", "24", "--steps", "2", "--windows", kind]
        status = cli.main([*words, "--output", str(tmp_path / kind)])
        return [file.read_bytes() for file in sorted(tmp_path.glob(f"{kind}/*.png"))], status

    assert draw("fixed")[0] != draw("tiled")[0] != []
    assert draw("moving") == ([], 2)
    assert "`--windows` is 'moving'" in capsys.readouterr().err


def test_generate_guides_by_a_subnet_or_by_another_network(folder, tmp_path, capsys):
    words = [
        "generate",
        str(folder),
        "--classes",
        "0",
        "-n",
        "1",
        "--steps",
        "2",
        "--schedule",
        "full",
        "--guidance",
        "3",
    ]
    (tmp_path / "full.json").write_text(json.dumps({"subnets": ["full"], "breaks": []}))
    again = ["--with", f"again={folder}", "--schedule", str(tmp_path / "full.json")]
    ways = {"plain": [], "second": ["1"], "whole": ["full"], "again": ["again", *again]}
    for name, way in ways.items():
        further = ["--guidance-subnet", *way] if way else []
        assert cli.main([*words, *further, "-o", str(tmp_path / name)]) == 0
    plain, second, whole, other = (
        np.asarray(Image.open(tmp_path / name / "cats-000000.png")).astype(int) for name in ways
    )
    assert np.array_equal(plain, whole) and abs(plain - other).max() <= 1 and abs(plain - second).max() > 5
    for wrong, message in (
        (["--guidance-subnet", "2"], "`--guidance-subnet` is '2'; choose one of 0, 1, 0+1"),
        (["--guidance-subnet", "1", *again], "`--guidance-subnet` is '1'; choose one of again, full"),
    ):
        assert cli.main([*words, *wrong, "-o", str(tmp_path / "wrong")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_generate_goes_on_and_never_replaces(folder, tmp_path, capsys):
    words = ["generate", str(folder), "--classes", "0", "-n", "2", "--steps", "1", "-o", str(tmp_path)]
    assert cli.main(words) == 0
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert cli.main(words) == 0
    assert cli.main([*words, "--seed", "1", "--guidance", "3"]) == 0
    names = ["cats-000000", "cats-000001", "cats-000001-2", "cats-000002", "cats-000002-2", "cats-000003"]
    assert sorted(file.stem for file in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == content for name, content in first.items())
    assert (tmp_path / "cats-000001-2.png").read_bytes() != first["cats-000001.png"]
    assert cli.main([*words, "--seed", "0", "--overwrite"]) == 0
    assert len(list(tmp_path.iterdir())) == len(names)
    (tmp_path / "cats-000000.png").write_bytes(b"mine")
    assert cli.main([*words, "--seed", "0", "--overwrite"]) == 2
    assert (tmp_path / "cats-000000.png").read_bytes() == b"mine"


def test_generate_names_a_class_one_way():
    names = {0: "Smileys & Emotion", 1: "a b", 2: "A-B", "3": "été"}
    assert class_slugs([0, 3], names) == {0: "smileys-emotion", 3: "été"}
    assert class_slugs([1], names) == {1: "a-b-1"} and class_slugs([1, 2], names) == {1: "a-b-1", 2: "a-b-2"}
    assert class_slugs([4], names) == {4: "class-4"} and class_slugs([None], {}) == {None: "image"}


def test_generate_takes_a_schedule_from_a_file(folder, tmp_path, capsys):
    model = LegoTransformer2DModel.from_pretrained(folder / "transformer")
    schedule = BrickSchedule.from_rules(model, {0: None})
    (tmp_path / "schedule.json").write_text(json.dumps(schedule.to_dict()))
    pictures = []
    for name in ("full", "fast", str(tmp_path / "schedule.json")):
        output = tmp_path / f"out{len(pictures)}"
        words = ["generate", str(folder), "--classes", "0", "--count", "1", "--steps", "4", "--schedule", name]
        assert cli.main([*words, "--output", str(output)]) == 0
        pictures.append((output / "cats-000000.png").read_bytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schedule", "slow"], "`--schedule` is 'slow'; choose saved, full, fast"),
        (["--classes", "cat"], "'cats'"),
        (["--classes", "2", "7"], "allowed are 0 to 1"),
        (["--height", "1"], "`--height` is 1"),
        (["--steps", "0"], "`--steps` is 0"),
        (["--guidance", "nan"], "`--guidance` is nan"),
        (["--seed", "-1"], "`--seed` is -1"),
        (["--count", "0"], "`--count` is 0"),
        (["--device", "tpu9"], "`--device` is 'tpu9'"),
    ],
)
def test_generate_says_what_is_wrong(folder, tmp_path, capsys, words, message):
    assert cli.main(["generate", str(folder), *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_generate_with_a_network_of_blocks(tmp_path, capsys):
    torch.manual_seed(0)
    network = BlockUNet2DModel(
        sample_size=8, num_classes=2, block_types="maxvit", block_out_channels=[8, 16], layers_per_block=1,
        attention_head_dim=8, window_size=4, id2label={0: "cats", 1: "dogs"},
    )  # fmt: skip
    ClassToImagePipeline.from_objective(network, EDMObjective()).save_pretrained(tmp_path / "pipe")
    words = ["generate", str(tmp_path / "pipe"), "--steps", "2", "--width", "12", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--classes", "dogs", "--count", "2", "--guidance", "2"]) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["dogs-000000.png", "dogs-000001.png"]
    assert Image.open(files[0]).size == (12, 8)
    for wrong, message in (
        (["--schedule", "fast"], "`--schedule` is 'fast', which is for a LEGO pipeline"),
        (["--windows", "fixed"], "leave it out"),
        (["--height", "6"], "the network's sample has height and width (6, 12), where stage 2 of 2 is 3 × 6"),
    ):
        assert cli.main([*words, "--seed", "7", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_info_of_a_pipeline(folder, capsys):
    assert cli.main(["info", str(folder), "--width", "48"]) == 0
    text = capsys.readouterr().out
    model = LegoTransformer2DModel.from_pretrained(folder / "transformer")
    assert f"{model.num_parameters():,} parameters" in text and "cats, dogs" in text
    for name, operations in model.subnets(16, 48).items():
        assert re.search(rf"^{re.escape(name)} +{operations / 1e9:.3f} ", text, re.MULTILINE)
    assert "brick schedule saved with it" in text and "in the last 50% of the steps" in text


def test_info_of_a_model_folder_and_a_preset(folder, capsys):
    assert cli.main(["info", str(folder / "transformer")]) == 0
    assert cli.main(["info", "lego-xl-u-64"]) == 0
    text = capsys.readouterr().out
    assert "trained at 64 × 64" in text and "brick schedule" not in text


def test_info_of_networks_of_blocks(tmp_path, capsys):
    sizes = {"block_types": "maxvit", "block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 8}
    network = BlockUNet2DModel(16, **sizes, window_size=4)
    ClassToImagePipeline.from_objective(network, EDMObjective()).save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "transformer"):
        assert cli.main(["info", str(name), "--width", "24"]) == 0
        text = capsys.readouterr().out
        assert f"{network.num_parameters():,} parameters" in text
        assert f"{network.subnets(16, 24)['full'] / 1e9:.3f} GFLOP" in text
        assert "stage 2 of 2: 8 × 12, windows of 4 × 4" in text
    assert cli.main(["info", str(tmp_path), "--width", "3"]) == 2
    assert "make both sides at least 7" in capsys.readouterr().err


def test_info_of_the_weights_that_ship(capsys):
    assert cli.main(["info", "lego-avatars-64", "--width", "192"]) == 0
    text = capsys.readouterr().out
    assert "micah" in text and "trained at 64 × 64 (4 × 4 pixels a latent)" in text and "GFLOP at 64 × 192" in text
    assert cli.main(["info", "lego-avatars-46"]) == 2
    assert "did you mean lego-avatars-64" in capsys.readouterr().err
    assert cli.main(["info", "lego-avatars-64", "--height", "0"]) == 2
    assert "`--height` is 0; give a whole number of pixels from 8 up (one patch)" in capsys.readouterr().err


def test_a_pipeline_of_another_class_is_told_of_and_says_what_draws_with_it(tmp_path, capsys):
    commands = "`brickwork demo resadapter`, `brickwork sweep` or `brickwork evaluate gen`"
    assert cli.main(["info", "avatars-sd-64"]) == 0
    text = capsys.readouterr().out
    pipeline = load_pipeline("avatars-sd-64", device="cpu")
    counts = {name: getattr(pipeline, name).num_parameters() for name in ("unet", "vae", "text_encoder")}
    assert f"StableDiffusionPipeline: {sum(counts.values()):,} parameters" in text and commands in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["unet"] == ["UNet2DConditionModel", f"{counts['unet']:,}"]
    assert rows["text_encoder"] == ["CLIPTextModel", f"{counts['text_encoder']:,}"]
    assert (
        rows["tokenizer"][1] == "-"
        and "draw with `brickwork generate --prompt TEXT`" in text
        and "safety_checker" not in rows
    )
    assert cli.main(["info", "avatars-sd-64", "--width", "64"]) == 2
    assert "leave them out" in capsys.readouterr().err
    assert cli.main(["generate", "avatars-sd-64", "--output", str(tmp_path / "out")]) == 2
    assert "`model` is 'avatars-sd-64', a StableDiffusionPipeline" in (error := capsys.readouterr().err)
    assert "add --prompt TEXT" in error and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def text_model():
    """The weights that ship and draw from text."""
    return next(name for name in brickwork.pretrained_names() if pipeline_class(name) == "StableDiffusionPipeline")


def test_generate_draws_prompts(text_model, tmp_path, capsys):
    words = ["generate", text_model, "--steps", "1", "-n", "2", "-o", str(tmp_path)]
    assert cli.main([*words, "--prompt", "sun", "Red heart!", "--width", "80"]) == 0
    files = sorted(tmp_path.iterdir())
    assert [re.sub("-[0-9a-f]{6}-", "-#-", file.name) for file in files] == [
        "red-heart-#-000000.png", "red-heart-#-000001.png", "sun-000000.png", "sun-000001.png",
    ]  # fmt: skip
    with Image.open(files[0]) as heart, Image.open(files[3]) as sun:
        assert (heart.info["Prompt"], heart.info["Software"]) == ("Red heart!", "brickwork generate")
        assert heart.size == sun.size == (80, 64) and heart.tobytes() != sun.tobytes()
        second = sun.tobytes()
    # Alone the same picture; run again it goes on behind what is there.
    assert cli.main([*words, "--prompt", "sun", "--width", "80", "--seed", "1", "-n", "1"]) == 0
    with Image.open(tmp_path / "sun-000001-2.png") as again:
        assert max(abs(a - b) for a, b in zip(again.tobytes(), second)) <= 1
    assert cli.main([*words, "--prompt", "sun", "-n", "1"]) == 0 and (tmp_path / "sun-000002.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", " "], "`--prompt` is empty"),
        (["--prompt", "sun", "sun"], "`--prompt` is 'sun' twice"),
        (["--prompt", "sun", "--width", "70"], "`--width` is 70; give a multiple of"),
        (["--prompt", "sun", "--classes", "1"], "`--classes` is ['1'], which is for networks of ours"),
        (["--prompt", "sun", "--schedule", "full"], "`--schedule` is 'full'"),
        (["--prompt", "sun", "--frames", "3"], "`--frames` is 3, which is for clips"),
        (["--prompt", "sun", "--exported", "x"], "`--exported` is 'x'"),
    ],
)
def test_generate_says_what_does_not_go_with_prompts(words, message, text_model, tmp_path, capsys):
    assert cli.main(["generate", text_model, "-o", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_prompt_for_classes_is_for_a_detector(folder, tmp_path, capsys):
    assert cli.main(["generate", str(folder), "-o", str(tmp_path / "out"), "--prompt", "cat"]) == 2
    assert "`--prompt` is ['cat'], which is for a text-to-image pipeline" in capsys.readouterr().err


def test_names_tell_prompts_apart():
    slugs = prompt_slugs(["a cat", "A cat", "a cat!", "word " * 40, "word " * 41, "…", "?"])
    assert len(set(slugs.values())) == 7 and slugs["a cat"] == "a-cat" and max(map(len, slugs.values())) < 70


def test_parameters_saved_in_two_types_count_once(tmp_path, capsys):
    network = UNet2DModel(
        8, block_out_channels=(8,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], norm_num_groups=4
    )
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(tmp_path)
    assert cli.main(["info", str(tmp_path)]) == 0
    before = capsys.readouterr().out
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert cli.main(["info", str(tmp_path)]) == 0
    assert capsys.readouterr().out == before
    assert f"{network.num_parameters():,}" in before and "draw with `brickwork sweep`" in before
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    assert cli.main(["info", str(tmp_path)]) == 2
    assert f"{weights}, which cannot be read as safetensors" in capsys.readouterr().err


def test_info_of_nothing(tmp_path, capsys):
    assert cli.main(["info", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_video_pipeline_draws_clips(tmp_path, capsys):
    from PIL import Image

    from brickwork import BlockUNet2DModel, VideoPipeline, inflate
    from brickwork.cli import main
    from brickwork.gen.parameterization import EDMObjective

    image = BlockUNet2DModel(
        sample_size=8, num_classes=2, block_out_channels=(8,), layers_per_block=1, id2label={0: "nod", 1: "walk"}
    )
    torch.nn.init.normal_(image.conv_out.weight, std=0.1)
    VideoPipeline.from_objective(inflate(image), EDMObjective(), num_frames=3, fps=5).save_pretrained(tmp_path / "p")
    words = ["generate", str(tmp_path / "p"), "--count", "1", "--steps", "2", "-o", str(tmp_path / "drawn")]
    assert main([*words, "--frames", "4"]) == 0 and "wrote 2 clips" in capsys.readouterr().out
    with Image.open(tmp_path / "drawn" / "walk-000000.gif") as file:
        assert file.n_frames == 4 and file.info["duration"] == 200
    assert main([*words, "--overwrite", "--seed", "0"]) == 0
    assert main(words) == 0 and (tmp_path / "drawn" / "nod-000001.gif").exists()
    assert main([*words, "--keep-best", "1", "--score", "pickscore"]) == 2
    assert "which is for pictures" in capsys.readouterr().err
