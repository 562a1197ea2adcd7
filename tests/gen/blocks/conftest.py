import pytest
import torch

from brickwork.gen.blocks import list_blocks
from brickwork.gen.necks import list_necks
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.networks.unet import BlockUNet2DModel
from brickwork.gen.stems import list_stems

SHARED = {"num_classes": 5, "attention_head_dim": 8, "window_size": 5}
TRANSFORMER = SHARED | {"sample_size": 20, "patch_size": 2, "in_channels": 3, "num_layers": 2, "hidden_size": 16}
UNET = SHARED | {"sample_size": 12, "in_channels": 3, "block_out_channels": (16, 24), "layers_per_block": 1}
MIXED = "dit,i2rmb,maxvit,resnet"

# Periods from the spectrum of a batch would tie its images to one another.
OPTIONS = {"timesblock": {"block_options": {"timesblock": {"periods": (7, 12), "num_kernels": 2}}}}

NETWORKS = {
    f"{kind} of {name}": (model, config | OPTIONS.get(name, {}), name)
    for kind, model, config in (
        ("transformer", BlockTransformer2DModel, TRANSFORMER),
        ("unet", BlockUNet2DModel, UNET),
    )
    for name in list_blocks()
}
MIXED_NETWORKS = {
    "mixed transformer": (BlockTransformer2DModel, TRANSFORMER | {"num_layers": 4}, MIXED),
    "mixed unet": (BlockUNet2DModel, UNET | {"block_out_channels": (16, 16, 24, 24), "sample_size": 20}, MIXED),
}
NETWORKS |= MIXED_NETWORKS
NETWORKS |= {f"stem {name}": (BlockUNet2DModel, UNET | {"stem": name}, "resnet") for name in list_stems()}
NETWORKS |= {f"neck {name}": (BlockUNet2DModel, UNET | {"neck": name}, "resnet") for name in list_necks()}
del NETWORKS["stem conv"], NETWORKS["neck skip"]  # those of every UNet above


def make_network(name: str, seed: int = 0, **overrides):
    """A tiny network with random numbers everywhere: fresh ones end in zeros and would hide mistakes."""
    model_class, config, block_types = NETWORKS[name]
    torch.manual_seed(seed)
    model = model_class(**(config | {"block_types": block_types} | overrides))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def network():
    return make_network


@pytest.fixture(params=list(NETWORKS))
def any_network(request):
    return make_network(request.param)


@pytest.fixture(params=list(MIXED_NETWORKS))
def mixed_network(request):
    return make_network(request.param)


@pytest.fixture
def inputs():
    def make(batch=2, channels=3, height=17, width=17, classes=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            "sample": torch.randn(batch, channels, height, width, generator=generator),
            "timestep": torch.rand(batch, generator=generator) * 1000,
            "class_labels": torch.randint(0, classes, (batch,), generator=generator),
        }

    return make
