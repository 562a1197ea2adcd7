"""What diffusers promises of a pipeline, of every one of ours that is registered; `CASES` say what is special."""

import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, EDMEulerScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import brickwork


def network(name):
    """The smallest of a class, without texts, with random numbers everywhere."""
    kind = getattr(brickwork, name)
    torch.manual_seed(0)
    config = dict(kind.smallest) | ({"cross_attention_dim": None} if "cross_attention_dim" in kind.smallest else {})
    if "network" in config:
        config["network"] = config["network"] | {"cross_attention_dim": None}
    model = kind(**config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def of_stable_diffusion():
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, eos_token_id=1, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return {
        "vae": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8),
        "text_encoder": CLIPTextModel(text),
        "tokenizer": CLIPTokenizer(
            vocab={token: n for n, token in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"])},
            merges=[],
            model_max_length=6,
        ),
        "unet": UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            cross_attention_dim=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip


@dataclass
class Case:
    """How a pipeline is tried.

    Attributes:
        network: the class of its `transformer`.
        parts: makes its components, where they are others than a `transformer` and a scheduler.
        further: constructor arguments.
        many: the call's argument that asks for several, with one and with two of them.
        per: the argument that asks for several of each, if any.
    """

    network: str = "BlockTransformer2DModel"
    parts: object = None
    further: dict = field(default_factory=dict)
    many: tuple = ("class_labels", [1], [1, 2])
    per: str | None = "num_images_per_prompt"

    def make(self, kind):
        takes = inspect.signature(kind).parameters
        parts = (
            self.parts() if self.parts else {"transformer": network(self.network), "scheduler": EDMEulerScheduler()}
        )
        pipe = kind(**{name: part for name, part in (parts | self.further).items() if name in takes})
        pipe.set_progress_bar_config(disable=True)
        return pipe


CASES = {
    "LegoPipeline": Case("LegoTransformer2DModel"),
    "OneStepPipeline": Case("MaxViTGenerator2DModel", many=("batch_size", 1, 2), per=None),
    "VideoPipeline": Case("VideoDenoiser", further={"num_frames": 3}),
    "TimeSeriesPipeline": Case("SeriesDenoiser", many=("n", 1, 2), per=None),
    "LayoutPipeline": Case(parts=of_stable_diffusion, many=("prompt", ["b"], ["b", "a"])),
}
KINDS = {name: getattr(brickwork, name) for name in brickwork._REGISTERED}
KINDS = {name: kind for name, kind in KINDS.items() if issubclass(kind, DiffusionPipeline)}


@pytest.fixture(params=list(KINDS))
def case(request):
    return CASES.get(request.param, Case())


@pytest.fixture
def pipe(request, case):
    return case.make(KINDS[request.node.callspec.params["case"]])


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, case, count=1, generator=None, **given):
    """What a call gives, as an array with the batch first."""
    takes = inspect.signature(type(pipe).__call__).parameters
    call = {case.many[0]: case.many[count], "output_type": "np", "generator": generator or seeded(*range(count))}
    call |= {"num_inference_steps": 2} if "num_inference_steps" in takes else {}
    return np.asarray(pipe(**call | given)[0])


def test_a_folder_is_loaded_by_its_class_and_by_diffusers(pipe, case, tmp_path):
    expected = draw(pipe, case)
    pipe.save_pretrained(tmp_path)
    for loader in (type(pipe), DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is type(pipe)
        assert abs(draw(loaded, case) - expected).max() < 1e-5


def test_a_folder_without_safetensors_is_loaded(pipe, case, tmp_path):
    expected = draw(pipe, case)
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("diffusion_*.safetensors"))
    for loader in (type(pipe), DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert abs(draw(loaded, case) - expected).max() < 1e-5


@pytest.mark.parametrize("low", [True, False])
def test_a_variant_is_loaded_in_half_precision(pipe, case, tmp_path, low):
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.rglob("*.fp16.safetensors"))
    options = {"variant": "fp16", "torch_dtype": torch.float16, "low_cpu_mem_usage": low}
    loaded = type(pipe).from_pretrained(tmp_path, **options)
    networks = {name: part for name, part in loaded.components.items() if isinstance(part, torch.nn.Module)}
    assert networks and {part.dtype for part in networks.values()} == {torch.float16}
    loaded.set_progress_bar_config(disable=True)
    assert np.isfinite(draw(loaded, case)).all()
    for kind in (OSError, ValueError):
        with pytest.raises(kind):
            type(pipe).from_pretrained(tmp_path, variant="bf16")


def test_components_make_the_pipeline_again(pipe, case):
    """With all that the configuration says beside the networks."""
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert (draw(again, case) == draw(pipe, case)).all()
    told = [name for name in inspect.signature(type(pipe)).parameters if name in pipe.config]
    assert all(again.config[name] == pipe.config[name] for name in told)


def test_one_generator_and_a_list_of_one_give_the_same_picture(pipe, case):
    alone = draw(pipe, case, generator=seeded(7)[0])
    assert (draw(pipe, case, generator=seeded(7)) == alone).all()
    assert (draw(pipe, case, generator=seeded(8)) != alone).any()


def test_a_picture_of_a_list_of_generators_is_drawn_again_alone(pipe, case):
    two, one = draw(pipe, case, 2, generator=seeded(3, 7)), draw(pipe, case, 1, generator=seeded(3))
    scale = max(1.0, abs(one).max())
    assert len(two) == 2 and abs(two[:1] - one).max() < 1e-4 * scale
    assert abs(two[:1] - two[1:]).max() > 1e-3 * scale
    with pytest.raises(ValueError):
        draw(pipe, case, 2, generator=seeded(1, 2, 3))


def test_several_of_each(pipe, case):
    takes = inspect.signature(type(pipe).__call__).parameters
    assert (case.per in takes) == bool({"class_labels", "prompt"} & set(takes))
    if case.per:
        four = draw(pipe, case, 2, generator=seeded(1, 2, 3, 4), **{case.per: 2})
        assert len(four) == 4
        assert abs(four[:2] - draw(pipe, case, 1, generator=seeded(1, 2), **{case.per: 2})).max() < 1e-4


def test_callbacks_see_every_step_and_may_change_the_latents(pipe, case):
    takes = inspect.signature(type(pipe).__call__).parameters
    assert ("callback_on_step_end" in takes) == ("num_inference_steps" in takes)
    if "callback_on_step_end" not in takes:
        return
    seen = []

    def callback(given, step, timestep, tensors):
        assert given is pipe and list(tensors) == ["latents"]
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    plain, changed = draw(pipe, case), draw(pipe, case, callback_on_step_end=callback)
    assert seen == [0, 1] and (plain != changed).any()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        draw(pipe, case, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["nothing"])


def test_the_output_is_also_a_tuple_and_latents_may_be_given(pipe, case):
    takes = inspect.signature(type(pipe).__call__).parameters
    assert {"return_dict", "latents", "generator", "output_type"} <= set(takes)
    assert (draw(pipe, case, return_dict=False) == draw(pipe, case)).all()
