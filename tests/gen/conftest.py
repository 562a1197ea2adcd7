import pytest
import torch

from brickwork import LegoTransformer2DModel

STACKS = {
    "growing": {"window_sizes": [4, 8, 16], "patch_sizes": [2, 4, 2], "num_layers": [1, 1, 2]},
    "shrinking": {"window_sizes": [16, 8, 4], "patch_sizes": [2, 8, 1], "num_layers": [2, 1, 1]},
    "u": {
        "window_sizes": [16, 8, 4, 8, 16],
        "patch_sizes": [4, 4, 2, 4, 2],
        "num_layers": [1, 1, 1, 1, 1],
        "hidden_sizes": [16, 24, 8, 24, 16],
        "num_attention_heads": [2, 3, 1, 3, 2],
    },
    "one brick": {"window_sizes": [16], "patch_sizes": [2], "num_layers": [1]},
}


def make_lego(stack: str = "growing", seed: int = 0, **overrides) -> LegoTransformer2DModel:
    """A tiny network with random weights everywhere: fresh ones end in zeros and would hide mistakes."""
    config = {"sample_size": 16, "num_classes": 5, "hidden_sizes": 16, "num_attention_heads": 2} | STACKS[stack]
    torch.manual_seed(seed)
    model = LegoTransformer2DModel(**(config | overrides))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


@pytest.fixture
def lego():
    return make_lego


@pytest.fixture(params=list(STACKS))
def any_lego(request):
    return make_lego(request.param)
