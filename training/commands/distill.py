"""What is chosen is a list of `section.key=value`, as for `brickwork train PICTURES`: the run's configuration says all
of it, and values on the command line go over it.

Train a student of a pipeline, class-conditional (of pixels or latents) or Stable Diffusion: with --steps a copy that
draws in so few calls of the network, guidance included; with --student a smaller network. The same command again goes
on from the newest checkpoint. The run leaves pipeline/, which knows its steps.

examples:
  brickwork distill lego-avatars-64 --steps 4 --data avatars
  brickwork distill runs/large --student tiny-resnet --data my-pictures run.total_images=50000
  brickwork distill my-stable-diffusion --steps 4 --data captioned-pictures resolution.max_size=512
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from brickwork.options import add_hub, as_overrides, of_hub
from brickwork.training.commands.train import add_run_options, train_as_asked

STEPS, SUBSTEPS = 4, 8
# Course of a run unless the command line says otherwise, in images.
IMAGES, BATCH, RATE = {"steps": 40_000, "student": 100_000}, 16, {"steps": 1e-4, "student": 5e-4}
SD_GUIDANCE = 5.0  # of a Stable Diffusion base, whose pipeline says none


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "teacher", metavar="TEACHER", help="weights that ship, a pipeline's or run's folder, or a hub id"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--steps", type=int, help=f"calls of the network that the student draws in (default: {STEPS})")
    what.add_argument(
        "--student",
        metavar="PRESET",
        help="train this smaller network instead: a preset (see `brickwork train --help`), or, of Stable Diffusion, "
        "the folder of a pipeline with a smaller UNet",
    )
    parser.add_argument("--second", metavar="TEACHER", help="of --student, another teacher, for the level of images")
    parser.add_argument("--data", metavar="PICTURES", help="a folder, a Parquet file, or a name on the hub")
    parser.add_argument(
        "--guidance",
        type=float,
        help="of --steps: scale that the student draws with by itself (default: the teacher's)",
    )
    add_run_options(parser, "values over what is chosen")
    add_hub(parser, "TEACHER")
    parser.set_defaults(run=run, config=None)


def run(args: argparse.Namespace) -> int:
    """Choose a configuration, and train.

    Raises:
        ValueError: for a teacher that is no pipeline of ours or Stable Diffusion, or options that do not go together.
    """
    from brickwork.eval.sampling.pipelines import local_pipeline, pipeline_class

    if args.second and not args.student:
        raise ValueError("`--second` is a second teacher of `--student`; a student of few steps has one.")
    if args.guidance is not None and args.student:
        raise ValueError("`--guidance` goes with `--steps`; a smaller student is guided as it draws.")
    args.name = _run_name(args.teacher)
    if "/" in args.teacher and not Path(args.teacher).exists():  # the run names the copy, which does not change
        args.teacher = local_pipeline(args.teacher, "TEACHER", **of_hub(args))
    kind = pipeline_class(args.teacher) or ""
    if kind.startswith("StableDiffusion"):
        from brickwork.training.tasks.latent.text_to_image import TextToImageTask

        args.overrides = [*of_stable_diffusion(args), *args.overrides]
        return train_as_asked(args, TextToImageTask)
    if kind not in ("LegoPipeline", "ClassToImagePipeline"):
        raise ValueError(
            f"`TEACHER` is {args.teacher!r}, {f'a {kind}' if kind else 'which holds no pipeline'}; give a "
            "LegoPipeline, a ClassToImagePipeline or a Stable Diffusion pipeline."
        )
    from brickwork.training.tasks.backbone import BackboneTask

    args.overrides = [*of_class_pipeline(args), *args.overrides]
    with tempfile.TemporaryDirectory(prefix="brickwork-distill-") as temporary:
        args.overrides += encoded_pictures(args, Path(temporary) if args.dry_run else None)
        return train_as_asked(args, BackboneTask)


def of_class_pipeline(args: argparse.Namespace) -> list[str]:
    """The run's values for a teacher of classes; sets `args.config` to a student's recipe."""
    import torch

    from brickwork.eval.sampling.pipelines import pipeline_folder, pipeline_parts
    from brickwork.files import read_json
    from brickwork.pipelines.objective_file import saved_objective
    from brickwork.training.commands import own_pictures
    from brickwork.training.config.precision import device_has_bf16
    from brickwork.training.config.recipes import recipe

    folder = Path(pipeline_folder(args.teacher))
    network, objective = read_json(folder / "transformer" / "config.json"), saved_objective(folder)
    if objective is None:
        raise ValueError(
            f"`TEACHER` is {args.teacher!r}, which does not say what it was trained for (objective.json)."
        )
    values: dict[str, Any] = {"objective.type": objective[0], "objective.options": objective[1]}
    names = network.get("id2label") or {}
    values |= {"data.classes": [names[number] for number in sorted(names, key=int)] or None}
    if not network.get("num_classes"):
        values["data.label_column"] = None
    vae = folder / "vae" / "config.json"
    factor = 2 ** (len(read_json(vae)["block_out_channels"]) - 1) if vae.is_file() else 1
    values["data.size"] = network.get("sample_size", 64) * factor
    chosen = own_pictures.described(args.data, args.overrides) if args.data else []
    if args.student:
        args.config, overrides = recipe(args.student)
        chosen = [*overrides, *chosen]
        values |= _course("student") | {"objectives": [_granular(args)]}
        values["run.output_dir"] = f"runs/{args.name}-{args.student}"
        return [*chosen, *as_overrides(values)]
    guidance = (
        args.guidance if args.guidance is not None else pipeline_parts(args.teacher).get("guidance_scale") or 1.0
    )
    guidance = guidance if network.get("num_classes") else 1.0
    values |= _course("steps") | _in_steps(args, guidance, args.name)
    values |= {"model.type": network["_class_name"], "model.init_from": str(folder)}
    values["objective.label_dropout"] = 0.1 if guidance == 1 else 0.0
    values["objective.brick_dropout"] = 0.25 if network.get("trained_subsets") == "any" else 0.0
    if not torch.cuda.is_available() and device_has_bf16():
        values["model.attention_backend"] = "_native_math"  # the fused one's backward pass is 20 times as slow there
    return [*chosen, *as_overrides(values)]


def of_stable_diffusion(args: argparse.Namespace) -> list[str]:
    """The run's values for a Stable Diffusion base."""
    from brickwork.eval.sampling.pipelines import pipeline_folder
    from brickwork.files import read_json

    folder = Path(pipeline_folder(args.teacher))
    side, downs = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    size = side["sample_size"] * 2 ** (len(downs["block_out_channels"]) - 1)
    values: dict[str, Any] = {"resolution.min_size": size, "resolution.max_size": size}
    if args.data:
        values["data.source"] = args.data
    if args.student:
        values |= _course("student") | {"model.base": args.student, "objectives": [_granular(args)]}
        return as_overrides(values | {"run.output_dir": f"runs/{args.name}-{_run_name(args.student)}"})
    guidance = SD_GUIDANCE if args.guidance is None else args.guidance
    values |= _course("steps") | _in_steps(args, guidance, args.name)
    values |= {"model.base": str(folder), "objective.min_snr_gamma": None}
    values["objective.caption_dropout"] = 0.1 if guidance == 1 else 0.0
    return as_overrides(values)


def encoded_pictures(args: argparse.Namespace, temporary: Path | None = None) -> list[str]:
    """Of a teacher with a VAE: `data.latents`, made beside the run's folder (or, if any, in a temporary one) where
    none are given.
    """
    from brickwork.eval.sampling.pipelines import load_vae, pipeline_folder
    from brickwork.training.config.config import load_config
    from brickwork.training.data.cache import cache_latents
    from brickwork.training.data.images import images_of

    folder = Path(pipeline_folder(args.teacher))
    config = load_config(args.config, args.overrides)
    if not (folder / "vae").is_dir() or config.data.latents is not None:
        return []
    latents = Path(f"{config.run.output_dir}-latents")
    if not latents.exists():
        latents = latents if temporary is None else temporary / "latents"
        print(f"Encoding the pictures once, into {latents}.")
        cache_latents(latents, images_of(config.data), load_vae(str(folder)), str(folder))
    return as_overrides({"data.latents": str(latents)})


def _granular(args: argparse.Namespace) -> dict[str, Any]:
    return {"type": "mgd", "teacher": [args.teacher, args.second] if args.second else args.teacher}


def _in_steps(args: argparse.Namespace, guidance: float, name: str) -> dict[str, Any]:
    steps = STEPS if args.steps is None else args.steps
    objective = {"type": "steps", "teacher": args.teacher, "steps": steps, "substeps": SUBSTEPS, "guidance": guidance}
    return {
        "objectives": [objective],
        "samples.steps": max(steps, 1),
        "samples.guidance_scale": 1.0,
        "run.output_dir": f"runs/{name}-{steps}-step{'s' if steps > 1 else ''}",
    }


def _course(kind: str) -> dict[str, Any]:
    total = IMAGES[kind]
    return {
        "run.total_images": total,
        "run.batch_size": BATCH,
        "run.log_images": total // 50,
        "run.sample_images": total // 4,
        "run.checkpoint_images": total // 8,
        "optimizer.learning_rate": RATE[kind],
        "optimizer.warmup_images": total // 40,
        "optimizer.cooldown_images": total // 4,
        "ema.half_life_images": total // 20,
    }


def _run_name(source: str) -> str:
    """A name for the run: of `runs/cats/pipeline`, `cats`."""
    path = Path(source)
    return path.parent.name if path.name == "pipeline" and path.parent.name else path.name
