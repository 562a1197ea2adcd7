"""Train a small `AutoencoderKL` on pictures of every size between `objective.options.min_size` and `data.size`.

    accelerate launch training/train_autoencoder.py --config training/configs/avatars_vae.yaml

Running the same command again goes on from the newest checkpoint. The run leaves `vae/`, whose scaling factor makes
the standard deviation of the training pictures' latents one.
"""

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.autoencoder import AutoencoderTask

main = task_script(__file__, __doc__, AutoencoderTask)

if __name__ == "__main__":
    raise SystemExit(main())
