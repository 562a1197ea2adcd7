"""Clips: frame by frame what the image pipeline draws until trained, windows, given frames, files."""

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from brickwork import BrickSchedule, ClassToImagePipeline, VideoPipeline, inflate
from brickwork.gen.networks import load_network_class
from brickwork.gen.parameterization import OBJECTIVES
from brickwork.pipelines.clip_files import write_clip
from brickwork.pipelines.sampling import Evaluation
from brickwork.pipelines.video import FrameWindows, KnownFrames


def make_image(kind="BlockTransformer2DModel"):
    network = load_network_class(kind)
    torch.manual_seed(0)
    text = {"cross_attention_dim": None} if "cross_attention_dim" in network.smallest else {}
    image = network(**network.smallest | text)
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return image.eval()


def make_pipeline(kind="BlockTransformer2DModel", pattern="ABC", objective="edm", trained=True):
    video = inflate(make_image(kind), pattern)
    if trained:
        for parameter in video.temporal.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    pipe = VideoPipeline.from_objective(video, OBJECTIVES[objective](), num_frames=4, fps=6)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seed=0, **arguments):
    call = {"num_inference_steps": 2, "output_type": "pt", "class_labels": [1, 3]} | arguments
    count = len(call["class_labels"])
    return pipe(generator=[torch.Generator().manual_seed(seed + k) for k in range(count)], **call).frames


def test_before_training_a_clip_is_what_the_image_pipeline_draws():
    pipe, image = make_pipeline(trained=False), make_image()
    pictures = ClassToImagePipeline.from_objective(image, OBJECTIVES["edm"]())
    pictures.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 3, 16, 12)
    clips = draw(pipe, latents=noise, width=12, guidance_scale=1.5)
    flat = noise.transpose(1, 2).flatten(0, 1)
    call = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 1.5, "width": 12}
    drawn = pictures([1, 1, 1, 3, 3, 3], latents=flat, **call).images
    assert clips.shape == (2, 3, 3, 16, 12)
    torch.testing.assert_close(clips.flatten(0, 1), drawn, rtol=1e-4, atol=1e-4)


def test_a_long_clip_in_windows():
    pipe = make_pipeline(trained=False)
    noise = torch.randn(2, 3, 9, 16, 16)
    torch.testing.assert_close(draw(pipe, latents=noise), draw(pipe, latents=noise, window=9), rtol=1e-4, atol=1e-4)
    pipe = make_pipeline()
    long, parts = draw(pipe, num_frames=9, window=9), draw(pipe, num_frames=9)
    assert long.shape == parts.shape == (2, 9, 3, 16, 16) and not torch.allclose(long, parts)
    assert FrameWindows(4, 2).starts(9) == [0, 2, 4, 5] and FrameWindows(4, 0).starts(3) == [0]
    seen = []
    FrameWindows(4, 1).at(lambda x, t: seen.append(x.shape[2]) or x, noise, torch.zeros(2))
    assert seen == [4, 4, 4]
    blended = FrameWindows(4, 1).at(lambda x, t: x, noise, torch.zeros(2))
    torch.testing.assert_close(blended, noise)  # every frame's weights add up to one


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_given_frames_come_in_the_noise_of_the_step_and_end_as_they_are(objective):
    pipe, made = make_pipeline(objective=objective), OBJECTIVES[objective]()
    picture = Image.effect_noise((16, 16), 60).convert("RGB")
    clips = draw(pipe, first_frames=picture, output_type="latent")
    expected = pipe._known(picture, 4, (16, 16)).expand(2, -1, -1, -1, -1)
    assert torch.equal(clips[:, :, :1], expected) and clips.shape == (2, 3, 4, 16, 16)
    free = draw(pipe, output_type="latent")
    assert not torch.allclose(clips[:, :, 1:], free[:, :, 1:])  # the others see it
    pipe.scheduler.set_timesteps(5)
    timestep = pipe.scheduler.timesteps[2]
    noise, hook = torch.randn(2, 3, 4, 16, 16), KnownFrames(expected, pipe.scheduler)
    hook.before(noise * getattr(pipe.scheduler, "init_noise_sigma", 1.0), Evaluation(0, pipe.scheduler.timesteps[0]))
    seen, _ = hook.before(torch.zeros(2, 3, 4, 16, 16), Evaluation(2, timestep))
    noise = noise[:, :, :1]
    level = {"edm": (4 * timestep).exp(), "flow": timestep / 1000}.get(objective, timestep).expand(2)
    wanted, _ = made.network_inputs(expected, noise, level)
    if objective == "edm":
        wanted = wanted * (level[0] ** 2 + made.sigma_data**2) ** 0.5
    torch.testing.assert_close(seen[:, :, :1], wanted.float(), rtol=1e-4, atol=1e-4)
    assert seen[:, :, 1:].abs().sum() == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_given_frames_without_noise_where_the_network_learned_to_see_them_so(objective):
    pipe, made, seen = make_pipeline(objective=objective), OBJECTIVES[objective](), []
    pipe.register_to_config(clean_first=True)
    run = pipe.transformer.forward
    pipe.transformer.forward = lambda x, t, **more: seen.append((x[:, :, :2], t)) or run(x, t, **more)
    picture = Image.effect_noise((16, 16), 60).convert("RGB")
    clips = draw(pipe, first_frames=picture, output_type="latent", guidance_scale=1.5, num_frames=6)
    known = pipe._known(picture, 4, (16, 16))
    clean, level = made.clean_inputs(known)
    assert torch.equal(clips[:, :, :1], known.expand(2, -1, -1, -1, -1))
    firsts = [(sample, timestep) for sample, timestep in seen if torch.allclose(sample[:, :, :1], clean)]
    assert len(firsts) == len(seen) / 2 and all(len(sample) == 4 for sample, _ in seen)  # one window of two begins so
    for sample, timestep in firsts:
        assert timestep.shape == (4, 4) and (timestep[:, 0] == level).all()
        assert not torch.allclose(sample[:, :, 1:], clean)
    assert all((timestep[:, 1:] != level).all() for _, timestep in firsts[:1])  # the last step may be as clean


def test_bricks_of_a_stack_by_schedule():
    pipe = make_pipeline("LegoTransformer2DModel")
    whole, schedule = draw(pipe), BrickSchedule.from_rules(pipe.transformer.image, {0: (0, 1e9), 1: (0, 5)})
    assert not torch.allclose(draw(pipe, subnet_schedule=schedule), whole)
    assert torch.equal(draw(pipe, subnet_schedule=BrickSchedule.full(pipe.transformer.image)), whole)


def test_saved_and_loaded(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is VideoPipeline and (again.config.num_frames, again.config.fps) == (4, 6)
    assert torch.equal(draw(again), draw(pipe))


def test_clips_as_files(tmp_path):
    output = make_pipeline()([2], num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    assert output.fps == 6 and len(output.frames[0]) == 4
    for name in ("clip.gif", "clip.webp"):
        with Image.open(output.save(tmp_path / name)) as file:
            assert file.n_frames == 4 and file.size == (16, 16) and file.info["loop"] == 0
    with Image.open(tmp_path / "clip.webp") as file:
        file.seek(3)
        assert file.convert("RGB").tobytes() == output.frames[0][3].convert("RGB").tobytes()
    for name in ("clip.png", "clip"):
        with pytest.raises(ValueError, match="`path` is"):
            output.save(tmp_path / name)
    with pytest.raises(ValueError, match="frames of one size"):
        write_clip([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))], tmp_path / "x.gif", 8)


def test_mp4_where_it_can_be_written_else_one_error(tmp_path, monkeypatch):
    from brickwork.pipelines import clip_files

    frames = [Image.new("RGB", (16, 12), (60 * k, 0, 0)) for k in range(4)]
    monkeypatch.setattr(clip_files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'brickwork\\[video\\]'"):
        write_clip(frames, tmp_path / "clip.mp4", 8)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    av = pytest.importorskip("av")
    with av.open(str(write_clip(frames, tmp_path / "clip.mp4", 8))) as file:
        assert [frame.width for frame in file.decode(video=0)] == [16] * 4


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"num_frames": 0}, "`num_frames` is 0"),
        ({"window": 0}, "`window` is 0"),
        ({"window": 3, "overlap": 3}, "`overlap` 3"),
        ({"latents": torch.randn(2, 3, 16, 16)}, r"frames, height, width\)"),
        ({"first_frames": Image.new("RGB", (8, 16))}, "`first_frames` have"),
        ({"first_frames": torch.zeros(2, 3, 9, 16, 16)}, "`first_frames` have"),
        ({"first_frames": ["x.png", "y.png"]}, "has a str"),
        ({"first_frames": torch.zeros(3, 3, 1, 16, 16)}, "those of 3 clips, and 2 are drawn"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"class_labels": [9, 1]}, "class"),
    ],
)
def test_bad_input_says_what_to_do(call, match):
    with pytest.raises(ValueError, match=match):
        draw(make_pipeline(), **call)


def test_frames_through_a_vae_of_pictures():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = load_network_class("BlockTransformer2DModel")
    image = network(**network.smallest | {"cross_attention_dim": None, "in_channels": 4, "out_channels": 4})
    vae = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    ).eval()  # fmt: skip
    pipe = VideoPipeline.from_objective(inflate(image), OBJECTIVES["edm"](), vae, num_frames=3)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.effect_noise((24, 16), 60).convert("RGB")
    call = {"num_inference_steps": 1, "height": 16, "width": 24, "first_frames": picture}
    frames = pipe([1], generator=torch.Generator().manual_seed(0), **call).frames[0]
    assert [frame.size for frame in frames] == [(24, 16)] * 3
    latents = pipe([1], generator=torch.Generator().manual_seed(0), output_type="latent", **call).frames
    assert latents.shape == (1, 4, 3, 8, 12)
    assert torch.equal(latents[:, :, :1], pipe._known(picture, 3, (8, 12)))
