"""Training on clips: going on equals never stopping, the temporal parts alone, and clips that do not go together."""

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open

from brickwork import BlockUNet2DModel, ClassToImagePipeline, VideoPipeline
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.clip_files import write_clip
from brickwork.pipelines.latents import encode
from brickwork.pipelines.objective_file import save_objective
from brickwork.training.config.clips import ClipDataConfig
from brickwork.training.config.config import load_config
from brickwork.training.data.clips import Clips, find_clips
from brickwork.training.engine.loop import prepare, train
from brickwork.training.tasks.video import VideoTask
from brickwork.training.train_video import main

DATA = {
    "clip_column": "clip", "label_column": "label", "classes": None, "held_out": 0.2, "max_broken_images": 5,
    "num_workers": 0, "size": 8, "frames": 4, "stride": 1, "fps": None, "horizontal_flip": False, "latents": None,
}  # fmt: skip


def moving(frames=6, size=8, way=1):
    """A square that goes a pixel a frame."""
    pictures = []
    for frame in range(frames):
        pixels = np.full((size, size, 3), 30, np.uint8)
        pixels[2:5, (way * frame) % size] = (200, 40 * frame, 90)
        pictures.append(Image.fromarray(pixels))
    return pictures


@pytest.fixture
def clips(tmp_path):
    """A folder of two classes: WebPs that go one way, folders of frames that go the other."""
    folder = tmp_path / "clips"
    for number in range(6):
        (folder / "right").mkdir(parents=True, exist_ok=True)
        write_clip(moving(way=number % 3 + 1), folder / "right" / f"{number}.webp", 10)
        (folder / "left" / f"clip{number}").mkdir(parents=True)
        for frame, picture in enumerate(moving(way=-1 - number % 3)):
            picture.save(folder / "left" / f"clip{number}" / f"{frame}.png")
    return folder


def open_clips(source, **values):
    return Clips(ClipDataConfig(source=str(source), **DATA | {"fps": 10.0} | values))


@pytest.fixture
def build(tmp_path, clips):
    torch.manual_seed(0)
    image = BlockUNet2DModel(sample_size=8, num_classes=2, block_out_channels=(8,), layers_per_block=1)
    torch.nn.init.normal_(image.conv_out.weight, std=0.1)  # fresh ones say nothing, and teach nothing
    image.save_pretrained(tmp_path / "image")
    values = {
        "model": {"image": str(tmp_path / "image")},
        "data": {"source": str(clips), "size": 8, "frames": 4, "fps": 10.0, "held_out": 0.2},
        "optimizer": {"learning_rate": 1.0e-2, "warmup_images": 4},
        "samples": {"count": 2, "steps": 2},
        "run": {
            "total_images": 8, "batch_size": 2, "log_images": 4, "sample_images": 8, "checkpoint_images": 4,
            "mixed_precision": "no",
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))

    def run(name, *overrides):
        values = [f"run.output_dir={tmp_path / name}", *overrides]
        return prepare(VideoTask, load_config(tmp_path / "tiny.yaml", values, VideoTask.configuration))

    return run


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_clips_shows_its_first_frame_without_noise(share, build, tmp_path):
    task = build("given", f"model.first_frame_share={share}").task
    batch = {name: torch.stack([task.stream[n][name] for n in range(256)]) for name in task.stream[0]}
    step = task.step(batch, 0)
    clean, level = task.parameterization.clean_inputs(step.images[:, :, :1])
    given = (step.timestep[:, 0] == level) & (step.sample[:, :, :1] == clean).flatten(1).all(dim=1)
    assert 0.4 < given.float().mean() < 0.6 if share == 0.5 else given.all()
    assert torch.equal(step.timestep[~given], step.timestep[~given][:, -1:].expand(-1, 4))
    dropped = batch["label_draw"] < 0.3  # the two draws have nothing to do with each other
    assert share == 1 or 0.2 < given[dropped].float().mean() < 0.8
    step.outputs = task.call(task.network, step)
    loss, target = task.losses(step), task.parameterization.target(step.images, step.noise, step.level)
    frames = (step.outputs[0] - target).square().mean(dim=(1, 3, 4))
    assert (frames[given, 0] == 0).all() and (frames[~given] > 0).all() and (frames[:, 1:] > 0).all()
    torch.testing.assert_close(loss, frames.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert task.pipeline(task.network).config.clean_first


def test_going_on_equals_never_stopping_and_leaves_a_pipeline(build, tmp_path, final_tensors, equal_bits, capsys):
    train(build("whole"))
    assert "held-out paired loss" in capsys.readouterr().out
    train(build("parts", "run.total_images=4"))
    train(build("parts"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    pipe = VideoPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.config.num_frames, pipe.config.fps) == (4, 10)
    assert len(pipe("left").frames[0]) == 4 and pipe("left").fps == 10
    with Image.open(next((tmp_path / "whole" / "samples").glob("*.png"))) as sheet:
        assert sheet.size == (4 * 8, 2 * 8 + 2)


def test_the_temporal_parts_learn_alone(build):
    run = build("temporal", "model.learns=temporal")
    before = {name: tensor.clone() for name, tensor in run.task.network.state_dict().items()}
    train(run)
    changed = {name for name, tensor in run.task.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("temporal.") for name in changed)


def test_windows_of_clips_by_their_frames(clips):
    data = open_clips(clips)
    assert len(data) == 12 and data.class_names == ["left", "right"] and data.fps == 10
    row = next(n for n, entry in enumerate(data.entries) if entry.name == "right/0.webp")
    sample, label = data.sample(row)
    assert sample.shape == (3, 4, 8, 8) and label == 1
    expected = np.stack([np.asarray(frame) for frame in moving()]) / 127.5 - 1
    np.testing.assert_allclose(sample.transpose(1, 2, 3, 0), expected[:4], atol=1e-6)
    starts = {data.sample(row, np.random.default_rng(k))[0][0, 0, 2].argmax() for k in range(30)}
    assert starts == {0, 1, 2}  # every window that there is
    strided, _ = open_clips(clips, stride=2, frames=3).sample(row)
    np.testing.assert_allclose(strided.transpose(1, 2, 3, 0), expected[::2], atol=1e-6)
    assert open_clips(clips, stride=2, frames=3).fps == 5


def test_a_frame_shown_longer_is_there_as_often(tmp_path):
    frames = moving(4)
    still = [frames[0], frames[0], frames[1], frames[1], frames[1], frames[3]]
    for name in ("a.gif", "a.webp"):
        write_clip(still, tmp_path / name, 10)
        data = open_clips(tmp_path, label_column=None, frames=6)
    assert [len(data._decoded(row)[0]) for row in range(2)] == [6, 6]


def test_video_files(tmp_path):
    pytest.importorskip("av")
    write_clip(moving(6, 16), tmp_path / "clip.mp4", 10)
    data = open_clips(tmp_path, label_column=None, fps=None)
    assert data.fps == 10 and data.sample(0)[0].shape == (3, 4, 8, 8)


def test_a_column_of_a_table(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    path = write_clip(moving(), tmp_path / "one.webp", 10)
    rows = {"clip": [{"bytes": path.read_bytes(), "path": "a"}] * 2, "label": [1, 0]}
    kind = {"clip": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=["nod", "walk"])}
    Dataset.from_dict(rows, features=Features(kind)).to_parquet(tmp_path / "clips.parquet")
    data = open_clips(tmp_path / "clips.parquet")
    assert data.class_names == ["nod", "walk"] and data.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="`data.clip_column` is 'film'; the columns are clip, label"):
        open_clips(tmp_path / "clips.parquet", clip_column="film")


def test_clips_that_do_not_go_together_say_so(clips, tmp_path):
    with pytest.raises(ValueError, match=r"takes 7 frames, and \S+ has 6"):
        open_clips(clips, frames=7)
    with pytest.raises(ValueError, match="does not say its rate; set `data.fps`"):
        open_clips(clips, fps=None)
    with pytest.raises(ValueError, match="several sizes or rates.*nothing is resampled"):
        open_clips(clips, fps=12.0)
    write_clip(moving(size=12), clips / "right" / "large.webp", 10)
    with pytest.raises(ValueError, match="12×12 at 10"):
        open_clips(clips)
    (clips / "right" / "large.webp").unlink()
    write_clip(moving(), clips / "loose.gif", 10)
    with pytest.raises(ValueError, match="1 clips have no class"):
        open_clips(clips)
    (clips / "loose.gif").write_bytes(b"GIF89a, and no more")
    assert len(open_clips(clips, label_column=None)) == 13  # named when its turn comes
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no clips; they are .gif"):
        open_clips(tmp_path / "empty")
    with pytest.raises(ValueError, match="give a folder of clips, or a Parquet file"):
        open_clips(tmp_path / "nowhere")
    assert len(find_clips(clips)) == 13


def test_a_network_that_does_not_fit_is_one_line(build, tmp_path, capsys):
    config = ["--config", str(tmp_path / "tiny.yaml"), f"run.output_dir={tmp_path / 'x'}"]
    for values, said in (
        (['model.image=""'], "`model.image` is empty"),
        ([f"model.image={tmp_path / 'nowhere'}"], "holds no network"),
        (["model.pattern=XYZ"], "`pattern` is 'XYZ'"),
        (["data.label_column=null"], "a network of 2 classes"),
        (["data.classes=[right, up]"], "has no clips of the class up"),
        (["model.learns=some"], "choose one of all, temporal"),
    ):
        assert main([*config, *values]) == 2
        assert said in capsys.readouterr().err


def test_clips_as_latents_of_the_image_pipelines_vae(build, tmp_path, clips):
    torch.manual_seed(0)
    classes = {0: "right", 1: "up", 2: "left"}  # more than the clips have, in another order
    image = BlockUNet2DModel(
        in_channels=4, sample_size=4, num_classes=3, block_out_channels=(8,), layers_per_block=1, id2label=classes
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=8, scaling_factor=2.0,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    ClassToImagePipeline.from_objective(image, EDMObjective(sigma_data=1.0), vae).save_pretrained(tmp_path / "latent")
    save_objective(tmp_path / "latent", "edm", {"sigma_data": 1.0})
    told = [f"model.image={tmp_path / 'latent'}", "objective.options.sigma_data=1.0"]
    run = build("latents", *told)
    data = run.task.stream.images
    assert data.channels == 4 and data.shapes == [(4, 4)] and data.class_names == ["right", "up", "left"]
    row = next(n for n, entry in enumerate(data.entries) if entry.name == "right/0.webp")
    sample, label = data.sample(row)
    pixels, _ = open_clips(clips).sample(row)
    expected = encode(vae, torch.from_numpy(pixels).transpose(0, 1)).transpose(0, 1)
    assert label == 0 and {*data.labels} == {0, 2}
    np.testing.assert_allclose(sample, expected.numpy(), atol=1e-5)
    assert data.fingerprint != open_clips(clips).fingerprint
    train(run)
    file = tmp_path / "clips.safetensors"
    kept = [build(name, *told, f"data.latents={file}").task.stream.images for name in ("one", "two")]
    np.testing.assert_array_equal(kept[0].sample(row)[0], kept[1].sample(row)[0])
    np.testing.assert_array_equal(kept[1].sample(row)[0], sample)
    with safe_open(file, "np") as stored:
        assert sorted(map(int, stored.keys())) == list(range(12))
    moving(way=2)[0].save(clips / "left" / "clip0" / "1.png")
    with pytest.raises(ValueError, match="it is of other clips or another size or VAE; name another file"):
        build("three", *told, f"data.latents={file}")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="`data.latents` is .*which cannot be read"):
        build("three", *told, f"data.latents={file}")
    pipe = VideoPipeline.from_pretrained(tmp_path / "latents" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is not None and pipe("left", num_inference_steps=2).frames[0][0].size == (8, 8)
    image = f"model.image={tmp_path / 'latents' / 'pipeline' / 'transformer' / 'image'}"
    again = build("again", image, told[1], "model.pattern=T").task
    assert again.vae is not None and type(again.network.temporal.layers[0]).__name__ == "TemporalAttention"
    for other in (told[0], image):
        with pytest.raises(ValueError, match="learned 1; set `objective.options.sigma_data=1`"):
            build("other", other)
    with pytest.raises(ValueError, match="`data.size` is 9; give a multiple of 2"):
        build("other", *told, "data.size=9")
    with pytest.raises(ValueError, match="`data.horizontal_flip` is true, and latents cannot be mirrored"):
        build("other", *told, "data.horizontal_flip=true")
