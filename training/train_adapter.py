"""Train an adapter on activations (`dino`, `layout`, …) on a frozen Stable Diffusion, from pairs in a data set.

    accelerate launch training/train_adapter.py model.base=my-model data.source=pairs.parquet adapter.type=dino \\
        'adapter.config={encoder: facebook/dinov2-small}' 'adapter.conditions={reference_image: reference}'

`adapter.conditions` says which column each condition is read from. Running the same command again goes on from the
newest checkpoint; `adapter.safetensors` in the run's folder is what `load_adapter` takes.
"""

import sys

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.latent.adapter import AdapterTask


def main(arguments: list[str] | None = None) -> int:
    return task_script("train_adapter.py", __doc__, AdapterTask, arguments)


if __name__ == "__main__":
    sys.exit(main())
