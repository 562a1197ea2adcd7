"""The marks of the evaluation's speed, for a machine that has nothing else to do:

    python tests/eval/measure_speed.py distance      # against numpy's eigvals of the product of the covariances
    python tests/eval/measure_speed.py extraction    # against the bare network on pixels that are ready

Both take turns, so that what else the machine does meets both alike; the middle of the rounds is printed, with the
range, in seconds of the wall and of all processor cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from brickwork.eval.extractors.features import FIXED_BATCH, Extractor, from_module, load_extractor
from brickwork.eval.extractors.protocols import get_protocol
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.sets.pictures import from_arrays


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time each way in every round and print the middle."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, cores = time.perf_counter(), time.process_time()
            way()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cores))
    for name, found in seconds.items():
        shown = []
        for kind, values in zip(("wall", "cores"), zip(*found)):
            shown.append(f"{statistics.median(values):.2f} s {kind} ({min(values):.2f} to {max(values):.2f})")
        print(f"{name:40} {', '.join(shown)}")


def distance(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(args.dimension, args.dimension, generator=generator) / args.dimension**0.5
    real, drawn = (torch.randn(args.count, args.dimension, generator=generator) @ mixing for _ in range(2))
    (_, *ours), (_, *theirs) = feature_statistics(real), feature_statistics(drawn)
    product = (ours[1] @ theirs[1]).numpy()
    ways = {
        "Fréchet distance of given statistics": lambda: frechet_distance(*ours, *theirs),
        "statistics of both sets, then that": lambda: frechet_distance(
            *feature_statistics(real)[1:], *feature_statistics(drawn)[1:]
        ),
        "numpy.linalg.eigvals of the product": lambda: np.linalg.eigvals(product),
    }
    take_turns(ways, args.rounds)


def extraction(args: argparse.Namespace) -> None:
    extractor, protocol = _extractor(args.extractor), get_protocol("clean")
    pixels = np.random.default_rng(0).integers(0, 256, (args.pictures, args.side, args.side, 3), dtype=np.uint8)
    images = from_arrays(pixels)
    ready = torch.randn(FIXED_BATCH, 3, extractor.size, extractor.size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(-(-args.pictures // FIXED_BATCH)):
            extractor.network(ready)

    bare()
    ways = {
        "decoding, resizing, features, statistics": lambda: extract_features(
            images, extractor, protocol, progress=False
        ),
        "the bare network": bare,
    }
    take_turns(ways, args.rounds)


def _extractor(name: str) -> Extractor:
    if name != "inception-v3-random":
        return load_extractor(name)
    from brickwork.eval.extractors.inception import INCEPTION_SIZE, InceptionV3

    return from_module(InceptionV3(), "random", INCEPTION_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("distance", "extraction"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=10000, help="of features (distance)")
    parser.add_argument("--dimension", type=int, default=2048, help="of features (distance)")
    parser.add_argument("--pictures", type=int, default=128, help="(extraction)")
    parser.add_argument("--side", type=int, default=64, help="of the pictures in pixels (extraction)")
    parser.add_argument(
        "--extractor", default="efficientnet-lite0", help="(extraction) or inception-v3-random: weights change no time"
    )
    args = parser.parse_args()
    {"distance": distance, "extraction": extraction}[args.what](args)


if __name__ == "__main__":
    main()
