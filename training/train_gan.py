"""Train MaxViT's one-step generator against a discriminator.

    accelerate launch training/train_gan.py --config training/configs/maxvit_gan.yaml

Running the same command again goes on from the newest checkpoint. The run leaves `pipeline/`, a `OneStepPipeline`.
"""

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.gan import GanTask

main = task_script(__file__, __doc__, GanTask)

if __name__ == "__main__":
    raise SystemExit(main())
