"""`brickwork evaluate ref | gen | reconstruct | calc | compare`: sample at scale, measure and compare, by protocols
that are stored with every number."""

import argparse
import json
import os
from pathlib import Path

from brickwork import hub, options
from brickwork.errors import explained, one_of
from brickwork.eval.commands.judge import add_detector, make_judge


def _add_extractor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE", help="local inception-v3 (.pth or .safetensors), else downloaded")
    parser.add_argument(
        "--weights-digest", metavar="HEX", help="start of the SHA-256 of --weights, if not as published"
    )
    options.add_common(parser, "--device")


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resolution", type=int, help="bring the centre square of each picture to this side in pixels"
    )
    parser.add_argument("--filter", default="lanczos", help="for that: lanczos, bicubic or box (default: lanczos)")
    convert = "convert grey, palette and alpha pictures (on white) instead of refusing"
    parser.add_argument("--convert", action="store_true", help=convert)
    parser.add_argument("--limit", type=int, help="take the first so many pictures only")


def configure_ref(parser: argparse.ArgumentParser) -> None:
    """Measure real pictures once: statistics, features, hashes. `accelerate launch -m brickwork.cli evaluate ref …`
    shares the work among several processes, as it does of gen and calc.

    example:
      brickwork evaluate ref data/emoji/train.parquet --resolution 64 -o emoji-64.safetensors
    """
    parser.add_argument("data", help="folder, .npz, .parquet, .tar, or the id of a data set on the hub")
    parser.add_argument("-o", "--output", required=True, help="the reference file to write (.safetensors)")
    parser.add_argument("--protocol", default="clean", help="adm, clean (default), legacy-pytorch or torchmetrics")
    known = "inception-v3 (default), efficientnet-lite0 (offline) or transformers:<folder or hub id> (DINOv2, …)"
    parser.add_argument("--extractor", default="inception-v3", help=known)
    parser.add_argument(
        "--no-features", action="store_true", help="store statistics only, for Fréchet distances: small"
    )
    options.add_common(parser, "--overwrite")
    _add_preparation(parser)
    _add_extractor(parser)
    parser.set_defaults(run=run_ref)


def configure_gen(parser: argparse.ArgumentParser) -> None:
    """Sample many pictures from a pipeline, each with its own seed.

    example:
      brickwork evaluate gen my-pipeline -n 7000 --seed 0 --labels balanced -o samples-0
    """
    options.add_common(parser, "pipeline")
    parser.add_argument("-o", "--output", required=True, help="folder of the pictures (for npz: the file)")
    parser.add_argument("-n", "--count", type=int, required=True, help="how many pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default: 0)")
    parser.add_argument("--labels", default="none", help="none, balanced or drawn (default: none)")
    parser.add_argument("--num-classes", type=int, help="number of classes to label with (default: the network's)")
    parser.add_argument("--prompts", metavar="FILE", help="prompts for text-to-image pipelines, one a line")
    parser.add_argument("--format", default="png", help="png (default), npz or webdataset")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once in each process (default: 16)")
    parser.add_argument("--steps", type=int, help="sampling steps (num_inference_steps of the pipeline)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the pictures, in pixels")
    options.add_common(parser, "--schedule")
    parser.add_argument("--count-work", action="store_true", help="count the operations of a picture, for reports")
    parser.add_argument("--guidance-scale", "--guidance", type=float, help="scale of classifier-free guidance")
    further = """further arguments of the pipeline, such as '{"eta": 0.5}'"""
    parser.add_argument("--call", default="{}", metavar="JSON", help=further)
    dtype = "float32 (default), bfloat16, float16; or float64: slow, but the same bytes with every batch size"
    parser.add_argument("--dtype", default="float32", help=dtype)
    options.add_common(parser, "--device", "--compile")
    options.add_hub(parser)
    parser.set_defaults(run=run_gen, check=hub.check_argument("pipeline"))


def configure_reconstruct(parser: argparse.ArgumentParser) -> None:
    """Code pictures as latents and decode them again: what an autoencoder alone costs, by the metrics of
    `evaluate calc`, and the ceiling of a network that draws its latents.

    example:
      brickwork evaluate reconstruct lego-avatars-64 data/avatars/held_out_seeds.parquet -o reconstructed
    """
    parser.add_argument("vae", help="an AutoencoderKL: its folder, a pipeline's, weights that ship or a hub id")
    parser.add_argument("data", help="folder, .npz, .parquet, .tar, or the id of a data set on the hub")
    parser.add_argument("-o", "--output", required=True, help="folder of the pictures")
    options.add_common(parser, "--overwrite")
    _add_preparation(parser)
    options.add_common(parser, "--device")
    options.add_hub(parser, "VAE")
    parser.set_defaults(run=run_reconstruct)


def configure_calc(parser: argparse.ArgumentParser) -> None:
    """Measure samples against a reference.

    example:
      brickwork evaluate calc samples-0 samples-1 --reference emoji-64.safetensors -o result.json
    """
    parser.add_argument("samples", nargs="+", help="one or more sets of samples, one for each seed")
    parser.add_argument("--reference", required=True, help="what `evaluate ref` wrote")
    parser.add_argument("-o", "--output", required=True, help="the result to write (.json); pictures go beside it")
    parser.add_argument(
        "--metrics", default="fd,kd,prdc", help="of fd, kd, prdc, is, sfd, attr-accuracy (default: fd,kd,prdc)"
    )
    parser.add_argument("--clip", metavar="MODEL", help="CLIP score with this CLIP, a folder or a hub id")
    paired = "paired denoising loss of this pipeline's network on these held-out pictures (with --resolution)"
    parser.add_argument("--paired", nargs=2, metavar=("PIPELINE", "DATA"), help=paired)
    parser.add_argument(
        "--objective", help="what that network was trained for (default: as objective.json says, or edm)"
    )
    given = """with --objective: its options, such as '{"p_mean": -0.4}'"""
    parser.add_argument("--objective-options", metavar="JSON", help=given)
    parser.add_argument("--subsets", type=int, default=100, help="subsets of the kernel distance (default: 100)")
    parser.add_argument("--subset-size", type=int, default=1000, help="pictures in a subset (default: 1000)")
    parser.add_argument("--splits", type=int, default=10, help="splits of the Inception Score (default: 10)")
    parser.add_argument("--metric-seed", type=int, default=0, help="seed of subsets and splits (default: 0)")
    parser.add_argument("--name", help="what to call the result (default: the first set's name)")
    tag = "for curves in reports, such as images=43000"
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help=tag)
    options.add_common(parser, "--overwrite")
    _add_preparation(parser)
    _add_extractor(parser)
    add_detector(parser, "--judge")
    options.add_hub(parser, "--paired's PIPELINE")
    parser.set_defaults(run=run_calc)


def configure_compare(parser: argparse.ArgumentParser) -> None:
    """Put results side by side.

    example:
      brickwork evaluate compare result.json other.json
    """
    parser.add_argument("results", nargs="+", help="two or more results of `evaluate calc`")
    parser.add_argument("--force", action="store_true", help="show results side by side that cannot be compared")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run_compare)


def _extractor(name: str, args: argparse.Namespace):
    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.sampling.pipelines import to_device

    extractor = load_extractor(name, args.weights, args.weights_digest)
    to_device(extractor.network, args.device)
    return extractor


def _require_image_sets(sources: list[str], limit: int | None = None) -> None:
    """Open each set once, one at a time: what is missing is said before networks are loaded or downloaded."""
    from brickwork.eval.sets.pictures import open_image_set

    for source in sources:
        open_image_set(source, limit)


def _preparation(args: argparse.Namespace):
    from brickwork.eval.sets.pictures import Preparation

    return Preparation(args.resolution, args.filter, args.convert)


def _check_output(output: str, suffix: str) -> Path:
    """Where to write, refused before any work is done if nothing can be written there."""
    path = Path(output)
    if path.suffix != suffix:
        raise ValueError(f"output: got {output}, need a name that ends in {suffix}")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"output: {output} cannot be written; name a file in a folder of your own")
    return path


def run_ref(args: argparse.Namespace) -> None:
    """Measure real pictures and write the reference file."""
    from accelerate import PartialState

    from brickwork.eval.metrics.reference import Reference, make_reference
    from brickwork.files import check_file

    output = _check_output(args.output, ".safetensors")
    check_file(output, lambda path: bool(Reference.load(path)), overwrite=args.overwrite)
    _require_image_sets([args.data], args.limit)
    extractor = _extractor(args.extractor, args)
    reference = make_reference(
        args.data, extractor, args.protocol, _preparation(args), args.limit, keep_features=not args.no_features
    )
    if PartialState().is_main_process:
        reference.save(args.output)
        made = f"{len(reference)} pictures, protocol {args.protocol}, {extractor.name}, identity {reference.identity}"
        print(f"{args.output}: {made}")


def run_gen(args: argparse.Namespace) -> None:
    """Sample a set."""
    import torch
    from accelerate import PartialState

    from brickwork.eval.sampling.pipelines import compile_pipeline, load_pipeline
    from brickwork.eval.sampling.sample_set import SamplingSettings, sample_set

    dtypes = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
    one_of("dtype", args.dtype, dtypes)
    settings = SamplingSettings(args.count, args.seed, args.labels, args.num_classes, _prompts(args), _call(args))
    pipeline = load_pipeline(args.pipeline, dtypes[args.dtype], args.device, **options.of_hub(args))
    if args.schedule != "saved":
        from brickwork.pipelines.schedules import named_schedule

        if not hasattr(pipeline, "schedule_name"):
            raise ValueError(f"schedule: {type(pipeline).__name__} has no subnets; leave --schedule out")
        pipeline.schedule = named_schedule(args.schedule, pipeline.transformer)
    if args.compile:
        compile_pipeline(pipeline)
    chosen = {name: getattr(args, name) for name in ("format", "batch_size", "count_work")}
    output = sample_set(pipeline, settings, args.output, source=args.pipeline, **chosen)
    if PartialState().is_main_process:
        print(f"{output}: {args.count} pictures, seed {args.seed}")


def run_reconstruct(args: argparse.Namespace) -> None:
    """Write pictures as an autoencoder gives them back."""
    from brickwork.eval.sampling.pipelines import load_vae, to_device
    from brickwork.eval.sampling.reconstruct import MAKER, reconstruct
    from brickwork.eval.sets.pictures import open_image_set
    from brickwork.files import check_folder

    check_folder(args.output, MAKER, overwrite=args.overwrite)
    images = open_image_set(args.data, args.limit)
    vae = to_device(load_vae(args.vae, **options.of_hub(args)).float().eval(), args.device)
    psnr = reconstruct(vae, images, _preparation(args), args.output, args.overwrite)
    print(f"{args.output}: {len(images)} pictures, PSNR {psnr:.2f} dB on average")


def _call(args: argparse.Namespace) -> dict:
    call = options.json_object("--call", args.call)
    named = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    if args.size is not None:
        named["height"], named["width"] = args.size
    return call | {name: value for name, value in named.items() if value is not None}


def _prompts(args: argparse.Namespace) -> tuple[str, ...] | None:
    if args.prompts is None:
        return None
    with explained(f"prompts: {args.prompts} cannot be read", OSError):
        lines = Path(args.prompts).read_text(encoding="utf-8").splitlines()
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"prompts: {args.prompts} is empty; need one prompt a line")
    return prompts


def run_calc(args: argparse.Namespace) -> None:
    """Measure samples and write the result with its pictures."""
    from accelerate import PartialState

    from brickwork.eval.metrics.calculate import calculate, memorisation, write_pictures
    from brickwork.eval.metrics.reference import Reference
    from brickwork.eval.metrics.registry import MetricSettings
    from brickwork.eval.report.numbers import number
    from brickwork.eval.report.results import RESULT_FORMAT
    from brickwork.files import check_results, write_json

    output = _check_output(args.output, ".json")
    pictures = [output.with_name(f"{output.stem}.{kind}.png") for kind in ("grid", "neighbours")]
    check_results(output, RESULT_FORMAT, pictures, overwrite=args.overwrite)
    metrics = [metric.strip() for metric in args.metrics.split(",") if metric.strip()]
    needed = {"clip": args.clip, "paired": args.paired, "judge": args.detector}
    metrics += [name for name, value in needed.items() if value is not None]
    settings = MetricSettings(
        tuple(dict.fromkeys(metrics)), args.subsets, args.subset_size, splits=args.splits, seed=args.metric_seed
    )
    reference, preparation = Reference.load(args.reference), _preparation(args)
    _require_image_sets(args.samples, args.limit)
    held_out = _held_out(args)
    extractor = _extractor(reference.info["extractor"]["name"], args)
    seen, further = [], {"clip": args.clip, "held_out": held_out, "judge": make_judge(args)}
    given = {"preparation": preparation, "limit": args.limit, "name": args.name, "tags": _tags(args.tag)}
    given["on_features"] = lambda *measured: seen or seen.append(measured)
    result = calculate(args.samples, reference, extractor, settings, **given, **further)
    if not PartialState().is_main_process:
        return
    _, images, measured = seen[0]
    if reference.features is not None:
        result["memorisation"] = memorisation(reference, measured.outputs["features"])
    write_json(output, result)  # first, as it makes the pictures recognisable
    nearest = result.get("memorisation")
    result["pictures"] = write_pictures(output.with_suffix(""), images, preparation, nearest, reference)
    write_json(output, result)
    for name, value in result["metrics"].items():
        over = f" over {value['spread_over']}" if value["spread"] is not None else ""
        print(f"{name:20} {number(value['mean'], value['spread'])}{over}")
    print(f"{output}: protocol {result['protocol']['name']}, N = {result['count']}")


def _held_out(args: argparse.Namespace):
    """What `calc --paired` scores, opened; the pipeline is loaded when it is needed."""
    from brickwork.eval.metrics.paired import HeldOut
    from brickwork.eval.sampling.pipelines import load_pipeline, local_pipeline
    from brickwork.eval.sets.pictures import open_image_set

    if args.paired is None:
        return None
    images = open_image_set(args.paired[1])  # before a pipeline that may have to be fetched
    pipeline = local_pipeline(args.paired[0], "--paired", **options.of_hub(args))
    return HeldOut(lambda: load_pipeline(pipeline, device=args.device), images, *_trained_for(args, pipeline))


def _trained_for(args: argparse.Namespace, pipeline: str) -> tuple[str, dict]:
    """The objective that `calc --paired` scores by: the one asked for, or the one that the pipeline's folder names."""
    from brickwork.pipelines.objective_file import saved_objective

    if args.objective is not None:
        return args.objective, options.json_object("--objective-options", args.objective_options or "{}")
    if args.objective_options is not None:
        raise ValueError("objective-options: got options without their objective; pass --objective too")
    return saved_objective(Path(pipeline)) or ("edm", {})


def _tags(entries: list[str]) -> dict:
    tags = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator or not key:
            raise ValueError(f"tag: got {entry!r}, need KEY=VALUE")
        try:
            tags[key] = float(value)
        except ValueError:
            tags[key] = value
    return tags


def run_compare(args: argparse.Namespace) -> None:
    """Print results side by side."""
    from brickwork.eval.report.results import compare, comparison_table, read_result

    comparison = compare([read_result(path) for path in args.results], args.force)
    print(json.dumps(comparison, indent=2, ensure_ascii=False) if args.json else comparison_table(comparison))
