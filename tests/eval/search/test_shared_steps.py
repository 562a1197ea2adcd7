"""The search for the switch between several networks: of ours and of diffusers, in Python and on the command line."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from brickwork import ClassToImagePipeline, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.eval.search.schedule_search import search_brick_schedule
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import schedule_from_file
from brickwork.pipelines.trajectory import stitch_trajectory


def make_text_pipeline(width, scheduler=None):
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, latent_channels=4,
                          down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(
            vocab={token: n for n, token in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"])},
            merges=[], model_max_length=6,
        ),
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(width, width), layers_per_block=1, norm_num_groups=4,
            attention_head_dim=4, cross_attention_dim=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipes():
    """A small one, whose estimates are worse, and a large one."""
    small, large = make_text_pipeline(8), make_text_pipeline(16)
    torch.nn.init.normal_(small.unet.conv_out.weight)
    return small, large


@pytest.fixture
def captioned(tmp_path):
    folder, random = tmp_path / "captioned", np.random.default_rng(0)
    folder.mkdir()
    for number, caption in enumerate(["a", "b", "a b"]):
        Image.fromarray(random.integers(0, 256, (16, 18, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def test_two_stable_diffusions_share_the_steps_as_was_searched(pipes, captioned):
    small, large = pipes
    found = search_brick_schedule(
        large, captioned, 0.7, networks={"small": small}, num_inference_steps=4, num_pairs=6, progress=False
    )
    assert found.subnets == ["small", "full"] and found.num_images == 3
    assert found.operations["small"] < found.operations["full"]
    best = min(
        (found._score(names) for names in itertools.product(found.subnets, repeat=4)),
        key=lambda score: score.loss if score.share <= 0.7 else math.inf,
    )
    assert found.score == best and {*found.score.subnets} == {"small", "full"}
    with stitch_trajectory(large, {"small": small}, found.schedule) as stitched:
        large("a b", num_inference_steps=4, guidance_scale=1.0, output_type="latent")
        assert tuple(stitched.ran) == found.score.subnets
    # What is scored is what the UNet makes of a picture's own caption.
    prompts = found.model["full"].prompts["prompt_embeds"]
    expected = large.encode_prompt(["a", "b", "a b"], "cpu", 1, False)[0]
    torch.testing.assert_close(prompts, expected)
    assert not np.allclose(found.losses["small"], found.losses["full"])


def test_the_commands_search_and_draw(pipes, captioned, tmp_path, capsys):
    for name, pipe in zip(("small", "large"), pipes):
        pipe.save_pretrained(tmp_path / name)
    sharing = [str(tmp_path / "large"), "--with", f"small={tmp_path / 'small'}", "--device", "cpu", "--steps", "3"]
    searched = tmp_path / "switch"
    arguments = ["search", sharing[0], str(captioned), *sharing[1:], "-o", str(searched), "--budget", "0.8"]
    assert cli.main([*arguments, "--pairs", "3"]) == 0
    schedule = schedule_from_file(searched / "schedule-0.8.json")
    assert {*schedule.subnets} <= {"small", "full"} and "only small" in capsys.readouterr().out
    draw = ["generate", *sharing, "--prompt", "a", "-n", "1", "--guidance", "1"]
    for name in ("small", "full"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"subnets": [name], "breaks": []}))
        assert cli.main([*draw, "--schedule", str(tmp_path / f"{name}.json"), "-o", str(tmp_path / f"of-{name}")]) == 0
    alone = ["generate", *draw[2:2], "--device", "cpu", "--steps", "3", *draw[-6:]]
    for name, folder in (("small", "small"), ("full", "large")):
        assert cli.main([alone[0], str(tmp_path / folder), *alone[1:], "-o", str(tmp_path / f"alone-{name}")]) == 0
        pictures = [np.asarray(Image.open(tmp_path / f"{kind}-{name}" / "a-000000.png")) for kind in ("of", "alone")]
        assert np.array_equal(*pictures)
    capsys.readouterr()
    guided = [*draw, "--guidance-subnet", "small"]
    for wrong, message in (
        ([*draw, "-o", "x"], "`--schedule` is 'saved', which says nothing of the networks of `--with`"),
        (
            [*guided, "--schedule", str(tmp_path / "small.json"), "-o", "x"],
            "`--guidance-subnet` is 'small', which is for networks of ours",
        ),
        ([*arguments, "--reference", "r.safetensors"], "`--reference` is 'r.safetensors', and `--with` was given"),
        (["search", sharing[0], str(captioned), "-o", "x"], "which has no subnets; name a smaller network"),
        ([*arguments, "--with", "small=again"], "`--with` is 'small=again'; give NAME=MODEL"),
        ([*arguments, "--with", "again"], "`--with` is 'again'; give NAME=MODEL"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err
    (captioned / "1.txt").unlink()
    assert cli.main([*arguments[:-2], "--budget", "0.9", "--overwrite"]) == 2
    assert "has no captions, but a StableDiffusionPipeline draws from text" in capsys.readouterr().err


def test_pipelines_of_ours_share_their_steps(tmp_path):
    def stack(layers):
        torch.manual_seed(layers)
        return LegoTransformer2DModel(
            sample_size=8, num_classes=2, window_sizes=(2, 8), patch_sizes=(1, 2), num_layers=(layers,) * 2,
            hidden_sizes=16, num_attention_heads=2, trained_crops=True,
        ).eval()  # fmt: skip

    small, large = (LegoPipeline(stack(layers), EDMHeunScheduler()) for layers in (1, 2))
    for parameter in small.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for pipe in (small, large):
        pipe.set_progress_bar_config(disable=True)
    folder, random = tmp_path / "labelled", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for label in range(2):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{label}.png")
        rows.append(json.dumps({"file_name": f"{label}.png", "label": label}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    found = search_brick_schedule(
        large, folder, 0.8, networks={"small": small}, num_inference_steps=3, num_pairs=2, progress=False
    )
    assert found.subnets == ["small", "full"] and {*found.score.subnets} == {"small", "full"}
    call = {"num_inference_steps": 3, "height": 10, "output_type": "latent"}
    drawn = large(
        0, brick_schedule=found.schedule, networks={"small": small.transformer},
        generator=torch.Generator().manual_seed(0), **call,
    )  # fmt: skip
    assert drawn.bricks == [() if name == "small" else (0, 1) for name in found.score.subnets]
    with stitch_trajectory(large, {"small": small}, found.schedule):
        stitched = large(0, generator=torch.Generator().manual_seed(0), **call)
    assert drawn.images.shape == stitched.images.shape == (1, 3, 10, 8)
    for name, pipe in (("small", small), ("large", large)):
        pipe.save_pretrained(tmp_path / name)
    (tmp_path / "schedule.json").write_text(json.dumps(found.schedule.to_dict()))
    command = ["generate", str(tmp_path / "large"), "--with", f"small={tmp_path / 'small'}", "--steps", "3", "-n", "1"]
    command += ["--schedule", str(tmp_path / "schedule.json"), "-o", str(tmp_path / "drawn"), "--device", "cpu"]
    assert cli.main([*command, "--classes", "0", "--height", "10"]) == 0
    [written] = (tmp_path / "drawn").iterdir()
    pixels = torch.from_numpy(np.asarray(Image.open(written)).copy()).permute(2, 0, 1) / 127.5 - 1
    assert (pixels - drawn.images[0].clamp(-1, 1)).abs().max() < 0.01
    other = BlockTransformer2DModel(
        in_channels=3, num_classes=2, sample_size=8, hidden_size=16, num_layers=1, attention_head_dim=8
    )
    with pytest.raises(ValueError, match="`networks` has 'dit', a BlockTransformer2DModel, and this pipeline tells"):
        large(0, networks={"dit": other}, **call)
    mixed = ClassToImagePipeline(large.transformer, EDMHeunScheduler())
    mixed.set_progress_bar_config(disable=True)
    assert mixed(0, networks={"dit": other}, subnet_schedule=None, **call | {"height": 8}).images.isfinite().all()
    with pytest.raises(ValueError, match=r"`networks\['small'\]` has num_classes None, and the pipeline's own 2"):
        search_brick_schedule(
            large, folder, networks={"small": stack(1).from_config(stack(1).config, num_classes=None)}
        )
