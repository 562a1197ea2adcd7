"""Train a backbone on images with class labels.

    accelerate launch training/train_backbone.py --config training/configs/lego_emoji_64_eight_groups.yaml
    accelerate launch training/train_backbone.py --preset dit-s-2 data.source=…

Running the same command again goes on from the newest checkpoint. Values can be set on the command line, in YAML:

    accelerate launch training/train_backbone.py --config … run.total_images=200000 data.size=32
"""

from brickwork.training.commands.train import configure_parser, script

main = script(__file__, __doc__, configure_parser)

if __name__ == "__main__":
    raise SystemExit(main())
