"""Training an autoencoder."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from brickwork.eval.sampling.pipelines import load_vae
from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare, train
from brickwork.training.objectives.divergence import DivergenceObjective
from brickwork.training.objectives.patch_adversarial import PatchAdversarialObjective
from brickwork.training.task import Step
from brickwork.training.tasks.autoencoder import AutoencoderTask, Redraw, at_random_size, with_noise
from brickwork.training.train_autoencoder import main

SAMPLE = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"
TINY = {
    "model": {
        "type": "AutoencoderKL",
        "config": {
            "block_out_channels": [4, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 2,
        },
    },
    "data": {"source": str(SAMPLE), "label_column": None, "group_column": "codepoints", "size": 32, "held_out": 0.1},
    "objective": {"type": "reconstruction", "options": {"min_size": 16}},
    "optimizer": {"learning_rate": 1.0e-2, "warmup_images": 4},
    "run": {
        "total_images": 8,
        "batch_size": 2,
        "log_images": 4,
        "sample_images": 8,
        "checkpoint_images": 4,
    },
}


@pytest.fixture
def build(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def run(name: str, *overrides: str):
        return prepare(
            AutoencoderTask, load_config(tmp_path / "tiny.yaml", [f"run.output_dir={tmp_path / name}", *overrides])
        )

    return run


def test_going_on_equals_never_stopping_and_latents_have_unit_deviation(
    build, tmp_path, final_tensors, equal_bits, capsys
):
    train(build("whole"))
    assert "held_out/psnr_16" in capsys.readouterr().out
    train(build("parts", "run.total_images=4"))
    train(build("parts"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    vae = AutoencoderKL.from_pretrained(tmp_path / "whole" / "vae").eval()
    run = build("other")
    rows, _ = run.task.stream.images.split(0.1)
    pictures = torch.stack([torch.from_numpy(run.task.stream.images.sample(int(row))[0]) for row in rows])
    small = torch.nn.functional.interpolate(pictures, size=16, mode="bilinear", antialias=True)
    with torch.no_grad():
        latents = vae.encode(small).latent_dist.mean * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, rel=0.02)
    assert list((tmp_path / "whole" / "samples").glob("*.png"))


def test_sizes_differ_and_follow_from_torchs_seed():
    pictures = torch.randn(3, 3, 32, 32)
    shapes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        first = at_random_size(pictures, 16)
        torch.manual_seed(seed)
        assert torch.equal(first, at_random_size(pictures, 16))
        shapes.add(tuple(first.shape))
    assert shapes == {(3, 3, 16, 16), (3, 3, 24, 24), (3, 3, 32, 32)}


def test_the_divergence_is_that_of_normal_distributions():
    mean, logvar = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    ours = DivergenceObjective()(None, {"quant_conv": torch.cat([mean, logvar], dim=1)}, None)["kl"]
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.type=BlockUNet2DModel", "`model.type` is 'BlockUNet2DModel'"),
        ("objective.type=edm", "`objective.type` is 'edm'"),
        ("objective.options.min_size=2", "at least 8"),
        ("objective.options.noise=-1", "noise -1"),
        ("objective.options.kl=2", "does not fit"),
        ("objective.options.learns=encoder", "`objective.options.learns` is 'encoder'"),
        ("objective.options.learns=decoder", "there is no encoder to learn from"),
        ("model.config.channels=2", "does not fit"),
    ],
)
def test_bad_input_is_one_line(build, tmp_path, capsys, override, message):
    arguments = ["--config", str(tmp_path / "tiny.yaml"), f"run.output_dir={tmp_path / 'run'}", override]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_decoder_learns_against_a_discriminator_and_the_latents_stay(
    build, tmp_path, final_tensors, equal_bits, capsys
):
    train(build("vae"))
    start = tmp_path / "vae" / "vae"
    words = (f"model.init_from={start}", "objective.options.learns=decoder")
    adversary = "objectives=[{type: patch_adversarial, channels: 4}]"
    train(build("whole", *words, adversary))
    train(build("parts", *words, adversary, "run.total_images=4"))
    train(build("parts", *words, adversary))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    before, after = (AutoencoderKL.from_pretrained(path).eval() for path in (start, tmp_path / "whole" / "vae"))
    assert after.config.scaling_factor == before.config.scaling_factor
    pictures = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        latents = [vae.encode(pictures).latent_dist.mean for vae in (before, after)]
        assert torch.equal(*latents)
        assert not torch.equal(*(vae.decode(latents[0]).sample for vae in (before, after)))


def test_the_adversarial_gradient_has_the_length_that_is_asked_for():
    torch.manual_seed(0)
    objective = PatchAdversarialObjective(strength=0.5, channels=4)
    real, drawn = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    step = Step(real, None, torch.zeros(2), real, torch.zeros(2), outputs=[drawn])
    objective.prepare(step, None)
    losses = objective(step, {}, None)
    (gradient,) = torch.autograd.grad(losses["adversarial"], drawn, retain_graph=True)
    (length,) = torch.autograd.grad((drawn - real).abs().mean(), drawn)
    torch.testing.assert_close(gradient.norm(), 0.5 * length.norm())
    # Each loss teaches one side alone.
    parameters = list(objective.parameters())
    told = torch.autograd.grad(losses["adversarial"], parameters, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in told)
    losses["discriminator"].backward()
    assert drawn.grad is None and all(parameter.grad is not None for parameter in parameters)


def test_the_discriminator_learns_to_tell_a_blur_from_a_picture():
    torch.manual_seed(0)
    objective = PatchAdversarialObjective(channels=8)
    real = torch.randint(2, (8, 3, 32, 32)).float() * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    step = Step(real, None, torch.zeros(8), real, torch.zeros(8), outputs=[blurred])
    objective.prepare(step, None)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = objective(step, {}, None)["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("options", [{"strength": -1}, {"channels": 0}])
def test_bad_settings_of_the_adversary_name_their_values(options):
    with pytest.raises(ValueError, match="give 0 or more, and at least 1"):
        PatchAdversarialObjective(**options)


def test_a_wider_autoencoder_takes_over_the_latents_of_another(build, tmp_path, final_tensors):
    train(build("vae"))
    start = tmp_path / "vae" / "vae"
    rarely = [f"run.{what}_images=200" for what in ("total", "log", "sample", "checkpoint")]
    wide = ("model.config.block_out_channels=[8, 16]", "optimizer.type=muon", *rarely)
    same = f"objectives=[{{type: same_latents, teacher: {start}, weight: WEIGHT}}]"
    train(build("free", *wide, same.replace("WEIGHT", "0")))
    train(build("tied", *wide, same.replace("WEIGHT", "10")))
    assert not any("teacher" in name or "other" in name for name in final_tensors(tmp_path / "tied"))
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vaes = [
        AutoencoderKL.from_pretrained(path).eval() for path in (start, tmp_path / "free/vae", tmp_path / "tied/vae")
    ]
    with torch.no_grad():
        wanted, free, tied = (vae.encode(pictures).latent_dist.mean * vaes[0].config.scaling_factor for vae in vaes)
    assert (tied - wanted).square().mean() < 0.3 * (free - wanted).square().mean()


def test_latents_of_another_shape_are_refused(build, tmp_path):
    train(build("vae"))
    with pytest.raises(ValueError, match="whose latents have 4 channels and 2 pixels .* this network's 3 and 2"):
        train(
            build(
                "other", "model.config.latent_channels=3",
                f"objectives=[{{type: same_latents, teacher: {tmp_path / 'vae' / 'vae'}}}]",
            )
        )  # fmt: skip


def test_the_decoder_sees_noise_in_training_alone():
    layer = torch.nn.Conv2d(4, 4, 1)
    layer.register_forward_pre_hook(partial(with_noise, share=0.5))
    latents = 3 * torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    layer.weight.data, layer.bias.data = torch.eye(4)[:, :, None, None], torch.zeros(4)
    assert torch.equal(layer.eval()(latents), latents)
    shares = (layer.train()(latents) - latents).flatten(1).std(dim=1) / latents.std()
    assert 0 < shares.min() and shares.max() < 0.6 and shares.std() > 0.05
    assert shares.mean().item() == pytest.approx(0.25, abs=0.06)


WIDE = ("model.type=UnequalAutoencoderKL", "model.config.encoder_block_out_channels=[4, 4]")


def test_a_decoder_of_other_widths_learns_on_the_latents_as_they_are(build, tmp_path, final_tensors, equal_bits):
    train(build("vae"))
    train(build("wide", "model.config.block_out_channels=[6, 8]"))
    start, other = (load_vae(str(tmp_path / name / "vae")) for name in ("vae", "wide"))
    words = (
        *WIDE, "model.config.block_out_channels=[6, 8]", f"model.init_from={tmp_path / 'vae' / 'vae'}",
        f"objective.options={{learns: decoder, decoder: {tmp_path / 'wide' / 'vae'}, noise: 0.1, min_size: 16}}",
    )  # fmt: skip
    begun = build("begun", *words).task.network
    pictures = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mean = start.encode(pictures).latent_dist.mean
        torch.testing.assert_close(begun.eval().decode(mean).sample, other.decode(mean).sample)
    train(build("whole", *words))
    train(build("parts", *words, "run.total_images=4"))
    train(build("parts", *words))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    ended = load_vae(str(tmp_path / "whole" / "vae"))
    assert type(ended).__name__ == "UnequalAutoencoderKL"
    assert ended.config.scaling_factor == start.config.scaling_factor
    with torch.no_grad():
        assert torch.equal(ended.encode(pictures).latent_dist.mean, mean)
        assert not torch.equal(ended.decode(mean).sample, other.decode(mean).sample)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.config.encoder_block_out_channels=[4, 8]", "`model.init_from` is an autoencoder of other widths"),
        ("objective.options.decoder=VAE", "`objective.options.decoder` is an autoencoder of other widths"),
        ("model.config.encoder_block_out_channels=[4]", "`encoder_block_out_channels` has 1 widths"),
        ("objective.options.learns=all", "`objective.options.decoder` is 'new' and `learns` 'all'"),
    ],
)
def test_widths_that_do_not_fit_are_refused(build, tmp_path, override, message):
    train(build("vae"))
    folder = str(tmp_path / "vae" / "vae")
    words = (*WIDE, "model.config.block_out_channels=[6, 8]", "objective.options={learns: decoder, decoder: new}")
    with pytest.raises(ValueError, match=message):
        build("other", *words, f"model.init_from={folder}", override.replace("VAE", folder))


def test_half_of_the_latents_are_redrawn_in_training_alone():
    vae = load_vae("lego-avatars-64")
    redraw, layer = Redraw("lego-avatars-64", vae, 0.3, torch.device("cpu")), torch.nn.Conv2d(4, 4, 1)
    picture = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)  # nothing that the network knows
    with torch.no_grad():
        raw = vae.encode(picture).latent_dist.mean.expand(32, -1, -1, -1)
    torch.manual_seed(0)
    change = (redraw(layer.train(), (raw,)) - raw).square().mean(dim=(1, 2, 3)).sqrt() * vae.config.scaling_factor
    assert 6 < (change > 0).sum() < 26 and change.max() < 0.5
    assert redraw(layer.eval(), (raw,)) is None
    redraw.highest = 0.0
    torch.testing.assert_close(redraw(layer.train(), (raw,)), raw, rtol=0.01, atol=0.05)


def test_a_network_that_knows_the_picture_redraws_it_as_it_was():
    vae = load_vae("lego-avatars-64")
    redraw = Redraw("lego-avatars-64", vae, 2.0, torch.device("cpu"))
    raw = torch.randn(8, 4, 4, 4)
    clean = raw * vae.config.scaling_factor

    def know(sample, timestep, labels, return_dict):
        level, found = (4 * timestep).exp()[:, None, None, None], redraw.paths.parameterization
        noise = (sample * (level**2 + found.sigma_data**2).sqrt() - clean) / level
        return (found.target(clean, noise, level.flatten()),)

    redraw.network.forward = know
    torch.testing.assert_close(redraw(torch.nn.Conv2d(4, 4, 1), (raw,)), raw, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["lego-avatars-64", "avatars-sd-64"])
def test_pipelines_of_other_latents_redraw_nothing(build, tmp_path, name):
    train(build("vae"))
    words = (
        f"model.init_from={tmp_path / 'vae' / 'vae'}",
        f"objective.options={{learns: decoder, redrawn_by: {name}}}",
    )
    with pytest.raises(
        ValueError, match=f"`objective.options.redrawn_by` is '{name}', which does not draw latents of"
    ):
        build("other", *words)
    with pytest.raises(ValueError, match=f"`objective.options.redrawn_by` is '{name}' and `learns` 'all'"):
        build("other", f"objective.options={{redrawn_by: {name}}}")
