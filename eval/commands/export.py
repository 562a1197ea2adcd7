"""Write the network of a pipeline as ONNX graphs, one for each subnet (of LEGO: each set of bricks) and size, with any
batch, each compared with the network before it is kept; then time both on this processor. Draw with them: `brickwork
generate MODEL --exported FOLDER`.

examples:
  brickwork export lego-avatars-64 -o lego-avatars-64-onnx
  brickwork export runs/tiny-lego --sizes 64 64x192 --subnets full -o onnx
"""

import argparse
import re
import statistics
import time
from pathlib import Path

from brickwork import options


def configure_parser(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser, "model")
    options.add_target(parser, "folder", "folder to write")
    parser.add_argument(
        "--sizes", nargs="+", metavar="HxW", help="pixels of the pictures, 64 or 64x192 (default: the training size)"
    )
    parser.add_argument("--subnets", nargs="+", metavar="NAME", help="which (default: every one that was trained)")
    parser.add_argument("--batch", type=int, default=4, help="images at once in the timing (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the timing, 0 for none (default: 5)")
    options.add_common(parser, "--overwrite")
    options.add_hub(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.pipelines.exported import export_network
    from brickwork.pipelines.latents import pixels_per_latent

    folder = options.target(args, "folder")
    options.check_at_least(args, 1, "batch")
    options.check_at_least(args, 0, "rounds")
    pipe = load_class_pipeline(args.model, "cpu", **options.of_hub(args))
    per_latent = 1 if pipe.vae is None else pixels_per_latent(pipe.vae)
    sizes = [_size(text, per_latent) for text in args.sizes] if args.sizes else None
    index = export_network(pipe.transformer, folder, sizes, args.subnets, overwrite=args.overwrite)
    print(_table(pipe.transformer, folder, index, args.batch, args.rounds))


def _size(text: str, per_latent: int) -> tuple[int, int]:
    """Height and width of the network's sample from those of the pictures."""
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    sides = [int(side or found[1]) for side in found.groups()] if found else [0]
    if min(sides) < 1 or any(side % per_latent for side in sides):
        raise ValueError(f"`--sizes` has {text!r}; give HEIGHTxWIDTH in pixels, multiples of {per_latent}.")
    return sides[0] // per_latent, sides[1] // per_latent


def _table(network, folder: Path, index: dict, batch: int, rounds: int) -> str:
    from brickwork.eval.report.blocks import Table

    rows = []
    for graph in index["graphs"]:
        times = _times(network, folder, index["inputs"], graph, batch, rounds)
        size = (folder / graph["file"]).stat().st_size / 2**20
        rows.append(
            (graph["subnet"], f"{graph['height']} × {graph['width']}", f"{size:.1f}", f"{graph['difference']:.0e}")
        )
        if times:
            torch_ms, graph_ms = (1000 * statistics.median(part) for part in zip(*times))
            ratios = sorted(eager / exported for eager, exported in times)
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows[-1] += (f"{torch_ms:.1f}", f"{graph_ms:.1f}", spread)
    columns = ["subnet", "size", "MiB", "difference"] + (["torch, ms", "graph, ms", "times as fast"] if rounds else [])
    return Table(columns, rows).text()


def _times(network, folder: Path, names: list[str], graph: dict, batch: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of a forward pass in torch and as a graph, one after the other in each round."""
    import torch

    from brickwork.pipelines.exported import example_inputs, use_exported

    given = dict(zip(names, example_inputs(network, names, (graph["height"], graph["width"]), batch)))

    def seconds() -> float:
        start = time.perf_counter()
        network(**given, subnet=graph["subnet"], return_dict=False)
        return time.perf_counter() - start

    times = []
    with torch.no_grad():
        for number in range(rounds + 1):
            eager = seconds()
            handle = use_exported(network, folder)
            try:
                seconds()  # loads the graph
                exported = seconds()
            finally:
                handle.remove()
            if number:  # the first round warms up
                times.append((eager, exported))
    return times
