"""Compute what a training run would need on many GPUs, from its configuration alone: memory of each under FSDP2,
traffic of a step, checkpoints, and the rate at which pictures must come. Nothing is trained.

examples:
  brickwork plan lego-xl-pg-64 --gpus 256 --classes 1000 --channels 4 run.batch_size=2048
  brickwork plan training/configs/lego_avatars_64.yaml --gpus 8
"""

import argparse

from brickwork import options


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_config", metavar="run", help="a preset (brickwork info), or the run's YAML file")
    options.add_common(parser, "overrides")
    parser.add_argument("--gpus", type=int, default=8, help="how many (default: 8)")
    parser.add_argument("--classes", type=int, default=10, help="of the data, 0 for none (default: 10)")
    parser.add_argument("--channels", type=int, default=3, help="3 for pixels (default), 4 for latents")
    parser.add_argument(
        "--rate", type=float, default=400, help="TFLOP/s that a GPU does in training (default: 400, an assumption)"
    )
    parser.add_argument("--link", type=float, default=50, help="GB/s in and out of each GPU (default: 50)")
    parser.add_argument("--disk", type=float, default=2, help="GB/s of writing a checkpoint (default: 2)")
    parser.add_argument("--picture", type=float, default=110, help="kB of a picture on disk (default: 110, ImageNet)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Count, compute and print."""
    options.check_at_least(args, 1, "gpus", "channels")
    options.check_at_least(args, 0, "classes")
    for name in ("rate", "link", "disk", "picture"):
        if getattr(args, name) <= 0:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; give a number above 0.")
    print(plan(args))


def plan(args: argparse.Namespace) -> str:
    """The tables as text."""
    from brickwork.training.config.at_scale import Cluster, count_run
    from brickwork.training.config.config import load_config
    from brickwork.training.config.recipes import recipe
    from brickwork.training.tasks.backbones import TrainedOn, build_model

    is_file = args.run_config.endswith((".yaml", ".yml"))
    path, values = (args.run_config, []) if is_file else recipe(args.run_config)
    config = load_config(path, [*values, *args.overrides])
    settings = config.run
    images, remainder = divmod(settings.batch_size, args.gpus * settings.gradient_accumulation_steps)
    if remainder or not images:
        raise ValueError(
            f"`run.batch_size` is {settings.batch_size}, which {args.gpus} GPUs cannot share evenly in "
            f"{settings.gradient_accumulation_steps} parts; give a multiple of "
            f"{args.gpus * settings.gradient_accumulation_steps}."
        )
    data = TrainedOn([str(number) for number in range(args.classes)], config.data.size, args.channels)
    half = settings.mixed_precision in ("bf16", "fp16", "auto")
    counted = count_run(
        lambda: build_model(config.model, config.objective, data), config.data.size, images, half,
        settings.gradient_checkpointing,
    )  # fmt: skip
    cluster = Cluster(args.gpus, args.rate * 1e12, args.link * 1e9, args.disk * 1e9)
    return tables(counted, cluster, config, args)


def tables(counted, cluster, config, args: argparse.Namespace) -> str:
    """What was counted and computed, in words and units."""
    from brickwork.eval.report.blocks import Table
    from brickwork.training.config.at_scale import (
        checkpoint_bytes,
        memory_of_gpu,
        time_of_step,
        traffic_of_step,
    )

    settings, side = config.run, config.data.size
    memory = memory_of_gpu(counted, cluster.gpus)
    seconds = time_of_step(counted, cluster, counted.batch * settings.gradient_accumulation_steps)
    rate = settings.batch_size / seconds["step"]
    saved, latent = checkpoint_bytes(counted.parameters), 2 * args.channels * side**2
    rows = [(f"memory of a GPU: {name}", f"{value / 2**30:.2f} GiB") for name, value in memory.items()]
    rows += [
        ("traffic of a step, in and out of each GPU", f"{traffic_of_step(counted, cluster.gpus) / 1e9:.2f} GB"),
        ("a step: computing", f"{1000 * seconds['computing']:.0f} ms"),
        ("a step: traffic, at the same time", f"{1000 * seconds['traffic']:.0f} ms"),
        ("images a second", f"{rate:,.0f}"),
        (f"the run's {settings.total_images:,} images", f"{settings.total_images / rate / 3600:.1f} h"),
        ("a checkpoint", f"{saved / 1e9:.2f} GB, written in {saved / cluster.disk:.0f} s"),
        (f"reading pictures of {args.picture:g} kB", f"{rate * args.picture / 1e6:.2f} GB/s"),
        (f"reading samples of {args.channels} x {side} x {side} in half precision", f"{rate * latent / 1e9:.2f} GB/s"),
    ]
    told = (
        f"{config.model.preset or config.model.type}: {counted.parameters / 1e6:.1f} M parameters, "
        f"{counted.operations / 1e9:.1f} GFLOP forward; {cluster.gpus} GPUs with {counted.batch} images each at once; "
        f"given: {args.rate:g} TFLOP/s, {args.link:g} GB/s, disk {args.disk:g} GB/s"
    )
    return f"{told}\n\n{Table(('', ''), rows).text()}"
