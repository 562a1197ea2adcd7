"""The networks, one line each. Class registration, training, `info` and the tests of every network go by it."""

import importlib

# Class => its module.
NETWORKS = {
    "LegoTransformer2DModel": "brickwork.gen.networks.lego",
    "BlockTransformer2DModel": "brickwork.gen.networks.transformer",
    "BlockUNet2DModel": "brickwork.gen.networks.unet",
    "MaxViTGenerator2DModel": "brickwork.gen.networks.gan",
    "StitchedDenoiser": "brickwork.gen.networks.stitched",
    "CompositeDenoiser": "brickwork.gen.networks.composite",
    "VideoDenoiser": "brickwork.gen.networks.video",
}


def load_network_class(name: str) -> type:
    """The class of a registered network."""
    return getattr(importlib.import_module(NETWORKS[name]), name)
