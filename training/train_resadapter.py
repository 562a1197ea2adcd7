"""Train a ResAdapter: Stable Diffusion learns to draw at sizes that it was not trained for.

    accelerate launch training/train_resadapter.py --config training/configs/resadapter_sd15.yaml

Running the same command again goes on from the newest checkpoint. Values can be set on the command line, in YAML:

    accelerate launch training/train_resadapter.py --config … model.base=my-model resolution.max_size=768

`--cache-only` makes the cache of latents and captions that `data.cache` names, and trains nothing.
"""

import argparse

from brickwork.training.commands.train import add_run_arguments, script, train_as_asked
from brickwork.training.config.config import load_config
from brickwork.training.engine.loop import prepare
from brickwork.training.tasks.latent.resadapter import ResAdapterTask


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser, "training/configs/stable_diffusion_defaults.yaml")
    parser.add_argument("--cache-only", action="store_true", help="fill data.cache, train nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not args.cache_only:
        return train_as_asked(args, ResAdapterTask)
    config = load_config(args.config, args.overrides, ResAdapterTask.configuration)
    if config.data.cache is None:
        raise ValueError("`data.cache` is null, so there is nothing to fill; name a folder.")
    prepare(ResAdapterTask, config)
    return 0


main = script(__file__, __doc__, configure_parser)

if __name__ == "__main__":
    raise SystemExit(main())
