"""Train a head that draws masks of the objects in what a denoiser makes, on its features (FFNet's up-head).

    python training/train_label_head.py data/scenes --output label-head
    python training/train_label_head.py shapes --output label-head

Prints the mean intersection over union on held-out scenes noised to several levels.
"""

from brickwork.training.heads import label_main

if __name__ == "__main__":
    raise SystemExit(label_main(__doc__))
