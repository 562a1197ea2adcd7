"""A ResAdapter beside everything else people do to a pipeline: other LoRAs, offloading, casting, compiling, types."""

import copy
import warnings

import accelerate
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from peft import LoraConfig

from brickwork.adapters.resadapter.functions import (
    disable_resadapter,
    enable_resadapter,
    fuse_resadapter,
    load_resadapter,
    set_resadapter_scale,
    unload_resadapter,
)


def add_lora(unet, name, seed, targets=("to_q", "downsamplers.0.conv", "upsamplers.0.conv", "conv1")):
    """A LoRA of PEFT's that shares convolutions with the ResAdapter, as LCM-LoRA does."""
    unet.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False), name)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in unet.named_parameters():
        if f".{name}." in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("resadapter_first", [True, False])
def test_other_loras_come_and_go(unet, official, helpers, resadapter_first):
    base, before = helpers.predict(unet), list(unet.state_dict())
    plain = helpers.make_unet("two")
    add_lora(plain, "lcm", 1)
    lcm_alone = helpers.predict(plain)
    steps = [lambda: load_resadapter(unet, official, scale=0.7), lambda: add_lora(unet, "lcm", 1)]
    for step in steps if resadapter_first else reversed(steps):
        step()
    both = helpers.predict(unet)
    load_resadapter(plain, official, scale=0.7)
    assert torch.equal(both, helpers.predict(plain))
    disable_resadapter(unet)
    assert torch.equal(helpers.predict(unet), lcm_alone)
    enable_resadapter(unet)
    unet.disable_lora()
    with_res_alone = helpers.make_unet("two")
    load_resadapter(with_res_alone, official, scale=0.7)
    assert torch.equal(helpers.predict(unet), helpers.predict(with_res_alone))
    unet.enable_lora()
    assert torch.equal(helpers.predict(unet), both)
    unet.unload_lora()
    assert torch.equal(helpers.predict(unet), helpers.predict(with_res_alone))
    unload_resadapter(unet)
    assert torch.equal(helpers.predict(unet), base) and list(unet.state_dict()) == before


def test_other_loras_through_the_pipeline(pipelines, helpers, tmp_path):
    """load_lora_weights, set_adapters, fuse_lora and unload_lora_weights of diffusers, around ours."""
    pipe = copy.deepcopy(pipelines["sd"])
    base = helpers.predict(pipe.unet)
    donor = copy.deepcopy(pipelines["sd"].unet)
    add_lora(donor, "lcm", 2)
    donor.save_lora_adapter(tmp_path / "lcm", adapter_name="lcm")
    folder = helpers.write_official(tmp_path / "res", *helpers.random_adapter_tensors(pipe.unet))
    pipe.unet.load_lora_adapter(tmp_path / "lcm" / "pytorch_lora_weights.safetensors", prefix=None, adapter_name="lcm")
    load_resadapter(pipe, folder)
    pipe.set_adapters(["lcm"], [0.5])
    half = helpers.predict(pipe.unet)
    pipe.fuse_lora(adapter_names=["lcm"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(helpers.predict(pipe.unet), half, rtol=0, atol=1e-4)
    disable_resadapter(pipe)
    fused_lcm = helpers.predict(pipe.unet)
    assert not torch.equal(fused_lcm, base)
    enable_resadapter(pipe)
    fuse_resadapter(pipe)
    unload_resadapter(pipe)
    assert torch.equal(helpers.predict(pipe.unet), fused_lcm)  # the user's fused LoRA is still there, exactly


def test_unfusing_another_lora_in_the_wrong_order_is_refused(unet, official):
    add_lora(unet, "lcm", 1)
    unet.fuse_lora()
    load_resadapter(unet, official)
    fuse_resadapter(unet)
    unet.unfuse_lora()
    with pytest.raises(ValueError, match="Undo that first"):
        unload_resadapter(unet)


@pytest.mark.parametrize("load_first", [True, False])
@pytest.mark.parametrize("kind", ["sequential", "model", "group", "layerwise"])
def test_offloading_and_casting(helpers, unet, official, kind, load_first):
    def prepare(unet):
        if kind == "sequential":
            accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
        elif kind == "model":
            accelerate.cpu_offload_with_hook(unet, execution_device=torch.device("cpu"))
        elif kind == "group":
            unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
        else:
            unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    reference = helpers.make_unet("two")
    if kind == "layerwise":
        prepare(reference)
    base = helpers.predict(reference)
    load_resadapter(reference, official)
    expected = helpers.predict(reference)
    if load_first:
        load_resadapter(unet, official)
    prepare(unet)
    if not load_first:
        load_resadapter(unet, official)
    assert torch.equal(helpers.predict(unet), expected)
    if kind in ("sequential", "layerwise"):
        with pytest.raises(ValueError, match="fuse before offloading"):
            fuse_resadapter(unet)
        assert torch.equal(helpers.predict(unet), expected)
    set_resadapter_scale(unet, 0.0)
    assert torch.equal(helpers.predict(unet), base)
    unload_resadapter(unet)
    assert torch.equal(helpers.predict(unet), base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("load_first", [True, False])
def test_half_precision(unet, official, helpers, dtype, load_first):
    base = helpers.predict(helpers.make_unet("two").to(dtype), dtype=dtype)
    exact = helpers.make_unet("two")
    load_resadapter(exact, official)
    if load_first:
        load_resadapter(unet, official)
    unet.to(dtype)
    if not load_first:
        load_resadapter(unet, official)
    on = helpers.predict(unet, dtype=dtype)
    assert on.dtype == dtype
    assert unet.down_blocks[0].downsamplers[0].conv.adapter_tensors[0].dtype == dtype
    torch.testing.assert_close(
        on.float(), helpers.predict(exact), rtol=0, atol=0.01 if dtype == torch.float16 else 0.08
    )
    fuse_resadapter(unet)
    torch.testing.assert_close(
        helpers.predict(unet, dtype=dtype).float(), on.float(), rtol=0, atol=0.01 if dtype == torch.float16 else 0.08
    )
    unload_resadapter(unet)
    assert torch.equal(helpers.predict(unet, dtype=dtype), base)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled(tmp_path, helpers, in_place):
    """Loading after compiling is noticed, new strengths need no new graph, "auto" acts outside the graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    plain, unet = helpers.make_unet("mini"), helpers.make_unet("mini")
    official = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(plain))
    if in_place:
        unet.compile(backend=backend, fullgraph=True)
    else:
        unet = torch.compile(unet, backend=backend, fullgraph=True)
    helpers.predict(unet)
    load_resadapter(unet, official)
    load_resadapter(plain, official)
    torch.testing.assert_close(helpers.predict(unet), helpers.predict(plain), rtol=0, atol=1e-5)
    made = len(graphs)
    for scale in (0.5, -1.0, "auto", 0.25):
        set_resadapter_scale(unet, scale)
        set_resadapter_scale(plain, scale)
        torch.testing.assert_close(helpers.predict(unet), helpers.predict(plain), rtol=0, atol=1e-5)
    assert len(graphs) == made == 2
    set_resadapter_scale(unet, "auto")
    set_resadapter_scale(plain, "auto")
    for size in ((16, 16), (8, 6), (16, 16)):
        torch.testing.assert_close(helpers.predict(unet, *size), helpers.predict(plain, *size), rtol=0, atol=1e-5)
    unload_resadapter(unet)
    unload_resadapter(plain)
    torch.testing.assert_close(helpers.predict(unet), helpers.predict(plain), rtol=0, atol=1e-5)
    torch._dynamo.reset()


def test_trained_gradients_pass_through(unet, official):
    """Someone may train another LoRA while a ResAdapter is on: gradients reach the base as before."""
    load_resadapter(unet, official)
    unet.conv_in.weight.requires_grad_(True)
    unet(torch.ones(1, 4, 8, 8), 10, torch.zeros(1, 5, 32)).sample.sum().backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0
    assert unet.down_blocks[0].downsamplers[0].conv.weight.grad.abs().sum() > 0


def relatives(pipe):
    """Calls of the other tasks' pipelines around the same parts."""
    parts = dict(pipe.components)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    if "text_encoder_2" in parts:
        yield StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False), {"image": image, "strength": 1.0}
        return
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    yield StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), {"image": image, "strength": 1.0}
    yield (
        StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False),
        {"image": image, "mask_image": mask, "strength": 1.0},
    )
    yield (
        StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False),
        {"image": image},
    )


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_pipelines_of_other_tasks(pipelines, helpers, tmp_path, kind):
    pipe = copy.deepcopy(pipelines[kind])
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(pipe.unet))
    for other, arguments in relatives(pipe):
        other.set_progress_bar_config(disable=True)

        def run(other=other, arguments=arguments):
            return other(
                "a red apple",
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
                **arguments,
            ).images

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = run()
            load_resadapter(other, folder)
            assert not torch.equal(run(), base)
            unload_resadapter(other)
            assert torch.equal(run(), base)


def test_ip_adapter(helpers, tmp_path):
    """IP-Adapter replaces attention processors and projects image embeddings; ours acts beside it."""
    unet = helpers.make_unet("sd")
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(unet))
    width, image_width, tokens = unet.config.cross_attention_dim, 6, 4
    generator = torch.Generator().manual_seed(0)
    weights = {}
    cross = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(cross):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * number + 1}.{part}.weight"] = torch.randn(hidden, width, generator=generator) * 0.1
    projection = {
        "proj.weight": torch.randn(tokens * width, image_width, generator=generator),
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    load_resadapter(unet, folder)
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    image = {"image_embeds": [torch.randn(1, 1, image_width, generator=generator)]}
    sample, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, width, generator=generator)

    def run():
        with torch.no_grad():
            return unet(sample, 300, text, added_cond_kwargs=image).sample

    on = run()
    image["image_embeds"][0] += 1.0
    assert not torch.equal(run(), on)
    image["image_embeds"][0] -= 1.0
    disable_resadapter(unet)
    off = run()
    assert not torch.equal(off, on)
    unload_resadapter(unet)
    assert torch.equal(run(), off)
