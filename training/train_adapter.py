"""Train an adapter on activations (`dino`, `layout`, …) on a frozen network, from pairs in a data set.

    accelerate launch training/train_adapter.py model.base=my-model data.source=pairs.parquet adapter.type=dino \\
        'adapter.config={encoder: facebook/dinov2-small}' 'adapter.conditions={reference_image: reference}'

`model.base` is a Stable Diffusion pipeline; `model.init_from` instead is a network of ours, with its `objective`,
which learns from pictures with or without classes. `adapter.conditions` says which column each condition is read from.
Running the same command again goes on from the newest checkpoint; `adapter.safetensors` in the run's folder is what
`load_adapter` takes.
"""

import argparse

from brickwork.training.commands.train import add_run_arguments, script, train_as_asked


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser, "training/configs/stable_diffusion_defaults.yaml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from brickwork.training.config.config import given_values

    if "model.init_from" in given_values(args.overrides, args.config):
        from brickwork.training.tasks.adapting import BackboneAdapterTask as Task
    else:
        from brickwork.training.tasks.latent.adapter import AdapterTask as Task
    return train_as_asked(args, Task)


main = script(__file__, __doc__, configure_parser)

if __name__ == "__main__":
    raise SystemExit(main())
