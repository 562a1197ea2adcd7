"""Train the region head of `brickwork judge` on a denoiser's features, with a frozen teacher (ViLD).

    python training/train_region_head.py data/scenes --teacher avatar-attributes --output region-head
    python training/train_region_head.py shapes --teacher shapes --output region-head

The data are scenes with boxes: a folder of `brickwork data build avatars --scenes`, or `shapes`, drawn on the way.
Classes given by `--leave-out` are not trained on, and tell how well the head knows new ones.
"""

from brickwork.training.heads import region_main

if __name__ == "__main__":
    raise SystemExit(region_main(__doc__))
