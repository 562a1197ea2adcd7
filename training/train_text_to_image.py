"""Train a Stable Diffusion pipeline on captioned pictures: its UNet, UNet and text encoder, or a LoRA over the UNet.

    accelerate launch training/train_text_to_image.py --config training/configs/avatars_sd_64.yaml

`model.base` is a pipeline's folder or hub name; `training/new_stable_diffusion.py` writes an untrained one. Running
the same command again goes on from the newest checkpoint.
"""

from brickwork.training.commands.train import task_script
from brickwork.training.tasks.latent.text_to_image import TextToImageTask

main = task_script(__file__, __doc__, TextToImageTask)

if __name__ == "__main__":
    raise SystemExit(main())
