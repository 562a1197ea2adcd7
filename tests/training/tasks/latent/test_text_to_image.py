"""Text-to-image training: the UNet, the UNet with its text encoder, a LoRA over the UNet."""

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import StableDiffusionPipeline

from brickwork.training.config.config import load_config
from brickwork.training.engine.checkpoints import trained_tensors
from brickwork.training.engine.loop import compute, prepare, train
from brickwork.training.tasks.latent.text_to_image import TextToImageTask
from brickwork.training.train_text_to_image import main


@pytest.fixture
def text_run(tiny_run, bases, tmp_path):
    """`text_run("name", "section.key=value", …, kind="sd1")` => a `Run` in `tmp_path/name`."""
    tiny_run("none")  # writes tiny.yaml
    values = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    values.pop("adapter")
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(values))

    def build(name: str, *overrides: str, kind: str = "sd1", **options):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        values = [f"model.base={bases[kind]}", f"run.output_dir={tmp_path / name}", *overrides]
        return prepare(
            TextToImageTask, load_config(tmp_path / "text.yaml", values, TextToImageTask.configuration), **options
        )

    return build


@pytest.mark.parametrize("parts", ["unet_and_text", "lora"])
def test_going_on_equals_never_stopping(text_run, tmp_path, final_tensors, equal_bits, parts):
    values = [
        f"parts.train={parts}",
        f"data.cache={tmp_path / 'cache'}",
        "resolution.max_size=8",
        "run.total_images=4",
    ]
    train(text_run("whole", *values))
    train(text_run("parts", *values, "run.total_images=2"))
    train(text_run("parts", *values))
    whole, resumed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts")
    assert equal_bits(whole, resumed)
    assert any("text_encoder" in name for name in whole) == (parts == "unet_and_text")


def test_only_what_is_named_changes(text_run):
    for parts, part in (("unet", ""), ("unet_and_text", ""), ("lora", "lora_")):
        run = text_run(parts, f"parts.train={parts}", "run.total_images=2")
        before = {name: tensor.detach().clone() for name, tensor in run.task.network.state_dict().items()}
        train(run)
        changed = {
            name for name, tensor in run.task.network.state_dict().items() if not torch.equal(tensor, before[name])
        }
        assert changed <= set(trained_tensors(run.task.network))
        assert changed and all(part in name for name in changed)
        assert any(name.startswith("text_encoder.") for name in changed) == (parts == "unet_and_text")


def test_a_text_encoder_in_training_sees_each_rows_own_caption(text_run):
    run = text_run("run", "parts.train=unet_and_text", "objective.caption_dropout=0")
    batch = torch.utils.data.default_collate([run.task.stream[0], run.task.stream[1]])
    seen = []
    run.task.network.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    losses, _, _ = compute(run, run.task.network, batch, 0)
    assert losses.shape == (2,)
    tokenizer = run.task.base.tokenizer
    captions = [run.task.stream.captioned.captions[row] for row in batch["row"].tolist()]
    wanted = tokenizer(captions, padding="max_length", truncation=True, max_length=12, return_tensors="pt").input_ids
    assert torch.equal(seen[0], wanted)
    run.task.complete.dropout = 1.0
    compute(run, run.task.network, batch, 0)
    assert torch.equal(seen[1][0], seen[1][1])


def test_what_a_run_leaves_loads_in_diffusers(text_run, bases, tmp_path):
    run = text_run("whole", "parts.train=unet_and_text", "run.sample_images=8", "run.total_images=2")
    train(run)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "whole" / "pipeline", safety_checker=None)
    weights = run.task.network.state_dict()
    assert torch.equal(pipeline.unet.conv_in.weight, weights["unet.conv_in.weight"])
    assert pipeline.vae.dtype == torch.float32
    assert list((tmp_path / "whole" / "samples").glob("*.png"))

    train(
        text_run(
            "lora",
            "parts.train=lora",
            "parts.rank=2",
            "parts.alpha=6",
            "optimizer.learning_rate=0.1",
            "run.total_images=2",
        )
    )
    pipeline = StableDiffusionPipeline.from_pretrained(bases["sd1"], safety_checker=None)
    sample, prompt = torch.randn(1, 4, 4, 4), torch.randn(1, 12, 8)
    before = pipeline.unet(sample, 10, prompt).sample
    pipeline.load_lora_weights(tmp_path / "lora")
    assert not torch.allclose(pipeline.unet(sample, 10, prompt).sample, before)
    assert pipeline.unet.conv_in.weight.shape[0] == 4  # neither the first nor the last layer has one
    layers = [m for m in pipeline.unet.modules() if hasattr(m, "scaling")]
    assert {tuple(m.scaling.values()) for m in layers} == {(3.0,)}


def test_sdxl_trains_its_unet_and_refuses_to_train_two_text_encoders(text_run, capsys):
    with pytest.raises(ValueError, match="SDXL has two"):
        text_run("run", "parts.train=unet_and_text", kind="sdxl")
    train(text_run("run", "parts.train=unet", "run.total_images=2", kind="sdxl"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parts.train=vae", "`parts.train` is 'vae'; choose one of"),
        ("parts.rank=0", "`parts.rank` is 0; give a whole number, at least 1"),
        ("parts.ranks=4", "did you mean `rank`"),
        ("adapter.rank=4", "Unknown key `adapter`"),
    ],
)
def test_bad_input_is_one_line(text_run, bases, tmp_path, capsys, override, message):
    assert main(["--config", str(tmp_path / "text.yaml"), f"model.base={bases['sd1']}", override]) == 2
    assert message in capsys.readouterr().err
