"""Training a ResAdapter: what is trained, what is written, and that all loaders agree on it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from brickwork.adapters.comfyui.reading import read_adapter
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import load_resadapter
from brickwork.adapters.resadapter.inject import adaptable_shapes
from brickwork.training.engine.checkpoints import CheckpointFolder, load_tensors, trained_tensors
from brickwork.training.engine.loop import train
from brickwork.training.tasks.latent.resadapter import trained_weights

# A cache of these is quickly made.
FEW = ("data.label_column=label", "data.classes=[Flags]", "data.held_out=0", "resolution.max_size=16")


@torch.no_grad()
def predict(unet, height=5, width=7):
    """The UNet's answer to a fixed random latent of an odd size."""
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 4, height, width, generator=generator)
    text = torch.randn(1, 12, unet.config.cross_attention_dim, generator=generator)
    added = {"text_embeds": torch.randn(1, 6, generator=generator), "time_ids": torch.full((1, 6), 16.0)}
    wants = unet.config.addition_embed_type == "text_time"
    return unet.eval()(sample, 300, text, added_cond_kwargs=added if wants else None).sample


def write_random_adapter(unet, folder, rank=3, alpha=1.5, norms=True, lora=True):
    """An authors' folder that fits the UNet."""
    generator = torch.Generator().manual_seed(5)
    tensors, absolute = {}, {}
    for name, shape in adaptable_shapes(unet).items():
        if len(shape) == 1:
            own = unet.get_parameter(name).detach()
            absolute[name] = own + 0.1 * torch.randn(own.shape, generator=generator)
            continue
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, shape[1], 3, 3, generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], rank, 1, 1, generator=generator)
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    folder.mkdir()
    if lora:
        save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    if norms:
        save_file(absolute, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "base"),
    [("interpolation", "sd1"), ("extrapolation", "sd1"), ("both", "sd1"), ("both", "sd2"), ("both", "sdxl")],
)
def test_every_loader_gives_what_was_trained(tiny_run, bases, fresh, tmp_path, kind, base):
    """After two steps: our library from both forms, and the authors' quick tour, against the network in memory."""
    run = tiny_run("run", f"adapter.kind={kind}", "run.total_images=4", "objective.size_conditions=picture", kind=base)
    frozen = {n: p.clone() for n, p in run.task.network.named_parameters() if not p.requires_grad}
    train(run)
    assert all(torch.equal(run.task.network.get_parameter(name), value) for name, value in frozen.items())
    averages = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()[0]["ema"]
    load_tensors(trained_tensors(run.task.network), averages)
    trained = predict(run.task.network)
    folder = tmp_path / "run" / "adapter"
    single = folder / "run.safetensors"

    original = fresh(base)
    before = predict(original.unet)
    assert (trained - before).abs().max() > 1e-3
    for source in (folder / "official", single):
        pipeline = fresh(base)
        load_resadapter(pipeline, source)
        torch.testing.assert_close(predict(pipeline.unet), trained, rtol=1e-5, atol=1e-5)

    lora, norms = (folder / "official" / f"{name}.safetensors" for name in (
        "pytorch_lora_weights", "diffusion_pytorch_model",
    ))  # fmt: skip
    assert (lora.exists(), norms.exists()) == (kind != "extrapolation", kind != "interpolation")
    if lora.exists():
        original.load_lora_weights(str(lora))
    if norms.exists():
        assert not original.unet.load_state_dict(load_file(norms), strict=False).unexpected_keys
    torch.testing.assert_close(predict(original.unet), trained, rtol=1e-5, atol=1e-5)

    converted = tmp_path / "converted.safetensors"
    convert_resadapter(folder / "official", converted, to="comfyui", base_model=bases[base])
    ours, theirs = load_file(single), load_file(converted)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    info = read_adapter(single).info
    assert info["range"] == {"min_size": 8, "max_size": 24, "max_ratio": 2.0}
    assert (info["base"], info["kind"], info.get("rank")) == (base, kind, None if kind == "extrapolation" else 2)
    assert info["trainer"].startswith("brickwork ")


def test_a_fresh_adapter_changes_nothing_and_switches_off_exactly(tiny_run, fresh):
    run = tiny_run("run")
    base = predict(fresh("sd1").unet)
    torch.testing.assert_close(predict(run.task.network), base, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in run.task.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    changed = predict(run.task.network)
    assert not torch.equal(changed, base)
    with run.task.adapter.switched_off():
        assert torch.equal(predict(run.task.network), base)
    assert torch.equal(predict(run.task.network), changed)


def test_what_is_trained(tiny_run):
    def names(kind):
        return set(trained_tensors(tiny_run("run", f"adapter.kind={kind}").task.network))

    lora, norms, both = names("interpolation"), names("extrapolation"), names("both")
    assert lora | norms == both
    assert all(".conv.lora_" in name and "samplers.0" in name for name in lora)
    assert all(".resnets." in name and ".norm" in name for name in norms)
    assert (len(lora), len(norms)) == (2 * 4, 2 * 2 * (6 + 2 + 9))


def test_resume_equals_an_uninterrupted_run(tiny_run, tmp_path, final_tensors, equal_bits):
    """With a cache, and samples drawn on the way, which must change nothing."""
    values = (f"data.cache={tmp_path / 'cache'}", *FEW)
    train(tiny_run("whole", *values))
    train(tiny_run("parts", *values, "run.total_images=4", "run.sample_images=4"))
    first = final_tensors(tmp_path / "parts")
    train(tiny_run("parts", *values, "data.num_workers=1"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    assert not equal_bits(first, final_tensors(tmp_path / "parts"))
    files = [load_file(tmp_path / name / "adapter" / f"{name}.safetensors") for name in ("whole", "parts")]
    assert equal_bits(*files)
    assert (tmp_path / "parts" / "samples" / "images-000000000004.png").exists()


def test_cached_and_encoded_anew_train_alike(tiny_run, tmp_path, final_tensors):
    for name, override in (("cached", f"data.cache={tmp_path / 'cache'}"), ("anew", "data.cache=null")):
        train(tiny_run(name, override, *FEW, "run.total_images=4", kind="sdxl"))
    cached, anew = (final_tensors(tmp_path / name) for name in ("cached", "anew"))
    for name, tensor in cached.items():
        torch.testing.assert_close(anew[name], tensor, rtol=1e-3, atol=1e-5)


def test_checkpointing_and_accumulation_train_alike(tiny_run, tmp_path, final_tensors):
    train(tiny_run("plain", "run.total_images=4"))
    train(tiny_run("other", "run.total_images=4", "run.gradient_checkpointing=true",
                   "run.gradient_accumulation_steps=2"))  # fmt: skip
    plain, other = (final_tensors(tmp_path / name) for name in ("plain", "other"))
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_half_precision_keeps_what_is_trained_in_float32(tiny_run):
    run = tiny_run("run", "run.mixed_precision=bf16", "run.total_images=2")
    assert {p.dtype for p in run.task.network.parameters() if p.requires_grad} == {torch.float32}
    assert run.task.network.conv_in.weight.dtype == torch.bfloat16
    train(run)
    assert all(tensor.isfinite().all() for tensor in trained_weights(run.task.network).values())


@pytest.mark.parametrize("mode", ["replace", "delta"])
def test_starting_from_an_official_adapter(tiny_run, bases, fresh, tmp_path, mode):
    """One's own checkpoint is another one than the adapter's base: delta keeps what makes them differ."""
    base = fresh("sd1")
    official = write_random_adapter(base.unet, tmp_path / "official")
    with torch.no_grad():
        for name, parameter in base.unet.named_parameters():
            parameter.add_(0.05 if ".norm" in name else 0.0)
    base.save_pretrained(tmp_path / "own")
    run = tiny_run(
        "run",
        f"model.base={tmp_path / 'own'}",
        f"adapter.init_from={official}",
        "adapter.rank=null",
        f"adapter.norm_mode={mode}",
        f"adapter.base_model={bases['sd1'] if mode == 'delta' else 'null'}",
        "run.total_images=2",
    )
    load_resadapter(base.unet, official, norm_mode=mode, **({"base_model": bases["sd1"]} if mode == "delta" else {}))
    torch.testing.assert_close(predict(run.task.network), predict(base.unet), rtol=1e-5, atol=1e-5)
    train(run)
    adapter = read_adapter(tmp_path / "run" / "adapter" / "official")
    assert {(pair.rank, pair.factor) for pair in adapter.convs.values()} == {(3, 0.5)}


def test_adapters_that_cannot_be_started_from(tiny_run, fresh, tmp_path):
    xl, sd = (fresh(kind).unet for kind in ("sdxl", "sd1"))
    other = write_random_adapter(xl, tmp_path / "xl")
    with pytest.raises(ValueError, match="`adapter.init_from` cannot be taken: .*xl does not fit"):
        tiny_run("run", f"adapter.init_from={other}", "adapter.rank=null")
    official = write_random_adapter(sd, tmp_path / "sd")
    with pytest.raises(ValueError, match=r"`adapter.rank` is 4, but .* has \[3\]"):
        tiny_run("run", f"adapter.init_from={official}", "adapter.rank=4")
    with pytest.raises(ValueError, match="delta.* needs base_model"):
        tiny_run("run", f"adapter.init_from={official}", "adapter.rank=null", "adapter.norm_mode=delta")
    half = write_random_adapter(sd, tmp_path / "half", norms=False)
    with pytest.raises(ValueError, match="has no norms, but `adapter.kind` is 'both'"):
        tiny_run("run", f"adapter.init_from={half}", "adapter.rank=null")
    half = write_random_adapter(sd, tmp_path / "other-half", lora=False)
    with pytest.raises(ValueError, match="has no LoRA, but `adapter.kind` is 'interpolation'"):
        tiny_run("run", f"adapter.init_from={half}", "adapter.rank=null", "adapter.kind=interpolation")
