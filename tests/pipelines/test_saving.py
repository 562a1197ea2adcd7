"""Pipelines on disk and on the Hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, EDMEulerScheduler
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import BrickSchedule


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        ["food & drink", None],
        num_inference_steps=3,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )


def assert_same(pipe, other):
    first, second = draw(pipe), draw(other)
    assert torch.equal(first.images, second.images)
    assert first.bricks == second.bricks


@pytest.mark.parametrize("loader", [LegoPipeline, DiffusionPipeline])
@pytest.mark.parametrize("latent", [False, True])
def test_saved_loaded_saved_and_loaded_again(make_pipe, vae, tmp_path, loader, latent):
    pipe = make_pipe(
        EDMHeunScheduler(s_churn=2.0), vae=vae if latent else None, in_channels=4 if latent else 3, sample_size=6
    )
    pipe.brick_schedule = BrickSchedule.fast(pipe.transformer, t_break=0.4)
    previous = pipe
    for name in ("first", "second"):
        previous.save_pretrained(tmp_path / name)
        loaded = loader.from_pretrained(tmp_path / name)
        assert type(loaded) is LegoPipeline and type(loaded.scheduler) is EDMHeunScheduler
        assert loaded.brick_schedule == pipe.brick_schedule
        assert loaded.scheduler.config.s_churn == 2.0
        assert_same(pipe, loaded)
        previous = loaded
    index = [json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("first", "second")]
    assert index[0] == index[1]
    # diffusers refuses libraries that it does not know when it loads from the Hub.
    assert index[0]["transformer"] == ["diffusers", "LegoTransformer2DModel"]
    assert index[0]["scheduler"] == ["diffusers", "EDMHeunScheduler"]
    assert index[0]["vae"] == (["diffusers", "AutoencoderKL"] if latent else [None, None])


def test_the_network_loads_by_itself(make_pipe, tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    for model in (
        LegoTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer"),
        AutoModel.from_pretrained(str(tmp_path), subfolder="transformer"),
        AutoModel.from_pretrained(str(tmp_path / "transformer")),
    ):
        assert type(model) is LegoTransformer2DModel
        assert_same(pipe, LegoPipeline(model, pipe.scheduler))


def test_components_can_be_replaced(make_pipe, vae, tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "heun")
    euler = LegoPipeline.from_pretrained(tmp_path / "heun", scheduler=EDMEulerScheduler())
    assert type(euler.scheduler) is EDMEulerScheduler
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    assert_same(pipe, euler)
    euler.save_pretrained(tmp_path / "euler")
    assert json.loads((tmp_path / "euler" / "model_index.json").read_text())["scheduler"][1] == "EDMEulerScheduler"
    assert_same(pipe, LegoPipeline.from_pretrained(tmp_path / "euler"))
    pipe.scheduler = EDMHeunScheduler()
    assert tuple(pipe.config.scheduler) == ("diffusers", "EDMHeunScheduler")

    schedule = BrickSchedule.fast(pipe.transformer)
    assert LegoPipeline.from_pretrained(tmp_path / "heun", brick_schedule=schedule).brick_schedule == schedule
    latent = make_pipe(in_channels=4, vae=vae)
    latent.save_pretrained(tmp_path / "latent")
    assert LegoPipeline.from_pretrained(tmp_path / "latent", vae=None).vae is None
    copied = LegoPipeline.from_pipe(latent)
    assert copied.transformer is latent.transformer and copied.vae is latent.vae


def test_loads_in_half_precision_and_by_device_map(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path)
    half = LegoPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert torch.isfinite(draw(half).images).all()
    assert_same(LegoPipeline.from_pretrained(tmp_path), LegoPipeline.from_pretrained(tmp_path, device_map="cpu"))


def test_a_compiled_network_is_saved_as_itself(make_pipe, tmp_path):
    pipe = make_pipe()
    pipe.transformer = torch.compile(pipe.transformer)
    pipe.save_pretrained(tmp_path)
    pipe.transformer = pipe.transformer._orig_mod
    assert_same(pipe, LegoPipeline.from_pretrained(tmp_path))


def test_weights_are_safetensors(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]


def test_a_schedule_for_another_stack_is_refused_on_loading(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["brick_schedule"] = {"window_sizes": [8, 4], "rules": [["always"], ["always"]]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="build one for this model"):
        LegoPipeline.from_pretrained(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub's API: `hub.files` after a push; what was pushed can be downloaded again."""
    state = SimpleNamespace(files={}, remote=tmp_path / "remote")

    def upload_folder(repo_id, folder_path, **rest):
        for path in sorted(Path(folder_path).rglob("*")):
            if path.is_file():
                name = path.relative_to(folder_path).as_posix()
                state.files[name] = path.read_bytes()
                target = state.remote / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(state.files[name])

    def model_info(repo_id, **rest):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in state.files], sha="0" * 40)

    def no_card(repo_id, **rest):
        raise EntryNotFoundError("README.md")

    monkeypatch.setattr("brickwork.hub._reachable", lambda: True)
    hub_utils, pipeline_utils = diffusers.utils.hub_utils, diffusers.pipelines.pipeline_utils
    monkeypatch.setattr(ModelCard, "load", no_card)
    monkeypatch.setattr(hub_utils, "create_repo", lambda repo_id, **rest: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr(pipeline_utils, "create_repo", lambda repo_id, **rest: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(pipeline_utils, "model_info", model_info)
    monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda name, revision, **rest: revision, raising=False)
    monkeypatch.setattr(
        pipeline_utils, "hf_hub_download", lambda repo_id, filename, **rest: str(state.remote / filename)
    )
    monkeypatch.setattr(pipeline_utils, "snapshot_download", lambda repo_id, **rest: str(state.remote))
    return state


def test_pushed_folder_is_complete_and_loads_from_the_hub(make_pipe, hub):
    pipe = make_pipe()
    pipe.brick_schedule = BrickSchedule.fast(pipe.transformer)
    pipe.push_to_hub("someone/bricks")
    assert sorted(hub.files) == [
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    card = hub.files["README.md"].decode()
    assert 'LegoPipeline.from_pretrained("someone/bricks")' in card and "extension of 🤗 diffusers" in card
    for loader in (LegoPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained("someone/bricks")
        assert loaded.brick_schedule == pipe.brick_schedule
        assert_same(pipe, loaded)


def test_the_card_of_a_pipeline_that_names_the_package_is_left_alone(make_pipe, hub, monkeypatch):
    card = ModelCard("---\nlicense: mit\n---\nDrawn by brickwork.\n")
    monkeypatch.setattr(ModelCard, "load", lambda repo_id, **rest: card)
    make_pipe().push_to_hub("someone/bricks")
    text = hub.files["README.md"].decode()
    assert "Drawn by brickwork." in text and "extension of" not in text


def nothing(path):
    return path / "missing"


def empty(path):
    return path


def stray_files(path):
    (path / "LEGO-L-PG-64.txt").touch()
    return path


def network_alone(path):
    EDMEulerScheduler().save_pretrained(path)
    (path / "config.json").write_text('{"_class_name": "LegoTransformer2DModel"}')
    return path


def picture(path):
    (path / "a.png").touch()
    return path / "a.png"


def authors_checkpoint(path):
    (path / "LEGO-L-PG-64.pkl").touch()
    return path / "LEGO-L-PG-64.pkl"


def other_pipeline(path):
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return path


def runs(path):
    (path / "one" / "pipeline").mkdir(parents=True)
    (path / "one" / "pipeline" / "model_index.json").write_text("{}")
    return path


def broken_index(path):
    (path / "model_index.json").write_text('{"_class_name": ')
    return path


def index_that_is_a_list(path):
    (path / "model_index.json").write_text("[]")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "there is no such pipeline here"),
        (empty, "it holds nothing; give a folder written by save_pretrained"),
        (stray_files, "it holds LEGO-L-PG-64.txt; give a folder"),
        (
            network_alone,
            "it holds a LegoTransformer2DModel alone; load that with LegoTransformer2DModel.from_pretrained",
        ),
        (picture, "is a file; LegoPipeline loads folders"),
        (authors_checkpoint, "LegoTransformer2DModel.from_original reads"),
        (other_pipeline, "holds a StableDiffusionPipeline, not a LegoPipeline"),
        (runs, "name one of the pipelines below it, .*/one/pipeline"),
        (broken_index, "is no JSON object"),
        (index_that_is_a_list, "no JSON object"),
    ],
)
def test_folders_without_a_pipeline(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        LegoPipeline.from_pretrained(make(tmp_path))


@pytest.mark.parametrize("lost", ["transformer", "transformer/diffusion_pytorch_model.safetensors", "scheduler"])
def test_folders_that_lack_a_part(make_pipe, tmp_path, lost):
    make_pipe().save_pretrained(tmp_path)
    lost = tmp_path / lost
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(ValueError, match="No LegoPipeline could be loaded from .*(config.json|safetensors)"):
        LegoPipeline.from_pretrained(tmp_path)


def test_weights_that_are_cut_short(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="No LegoPipeline could be loaded"):
        LegoPipeline.from_pretrained(tmp_path)


def test_repositories_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match="'someone/nothing'; there is no such pipeline here, and the Hugging Face Hub cannot be reached",
    ):
        LegoPipeline.from_pretrained("someone/nothing")


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_a_missing_variant_is_an_error_of_both_kinds(make_pipe, tmp_path, kind):
    make_pipe().save_pretrained(tmp_path)
    with pytest.raises(kind, match="variant"):
        LegoPipeline.from_pretrained(tmp_path, variant="fp16")


def test_a_folder_that_torch_saved_loads(make_pipe, tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    again = LegoPipeline.from_pretrained(tmp_path)
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], tensor), name


def test_components_keep_the_schedule_and_what_is_recommended(make_pipe):
    pipe = make_pipe()
    pipe.brick_schedule = BrickSchedule.fast(pipe.transformer)
    pipe.register_to_config(guidance_scale=1.5, num_inference_steps=4)
    again = LegoPipeline(**pipe.components)
    assert again.brick_schedule == pipe.brick_schedule
    assert (again.config.guidance_scale, again.config.num_inference_steps) == (1.5, 4)


def test_weights_that_ship_load_by_their_name():
    pipe = LegoPipeline.from_pretrained("lego-avatars-64")
    assert pipe.config.guidance_scale == 2.0 and pipe.config.num_inference_steps == 10
    with pytest.raises(ValueError, match="did you mean 'lego-avatars-64'"):
        LegoPipeline.from_pretrained("lego-avatars-46")


def test_labels_may_be_nested(make_pipe):
    pipe = make_pipe()
    arguments = {"num_inference_steps": 1, "output_type": "np", "num_images_per_prompt": 2}
    images = [
        pipe(labels, generator=torch.Generator().manual_seed(0), **arguments).images
        for labels in ([0, 1], [[0], [1]], torch.tensor([[0], [1]]))
    ]
    assert len(images[0]) == 4 and all((other == images[0]).all() for other in images[1:])
