"""BatchNorm in a denoiser: averaged weights sample with statistics averaged like them."""

import copy

import torch

from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.parameterization import EDMObjective
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.training.engine.ema import EMA


def draw(model, train=False):
    """Samples of the network, with the statistics of the batch itself (`train`) or the network's own."""
    pipe = ClassToImagePipeline.from_objective(copy.deepcopy(model).train(train), EDMObjective())
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe([None] * 64, num_inference_steps=6, output_type="latent", generator=generator).images


def test_sampling_from_averaged_weights():
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 3, "num_layers": 2, "hidden_size": 16, "attention_head_dim": 8}
    model = BlockTransformer2DModel(**config, block_types="i2rmb", window_size=4).train()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    objective, optimizer = EDMObjective(), torch.optim.Adam(model.parameters(), 3e-3)
    ema = EMA(model, half_life_images=16 * 12)
    for step in range(60):
        images, noise = torch.randn(16, 3, 8, 8) * 0.5 + 0.2, torch.randn(16, 3, 8, 8)
        sigma = objective.noise_levels(torch.randn(16))
        output = model(*objective.network_inputs(images, noise, sigma)).sample
        objective.losses(output, images, noise, sigma).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(16 * (step + 1), 16)
    with ema.applied() as averaged:
        own, wanted = draw(averaged), draw(averaged, train=True)
        strange = copy.deepcopy(averaged)  # the averaged weights alone, as in an EMA that leaves buffers out
        for module in strange.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        near, far = (own - wanted).norm(), (draw(strange) - wanted).norm()
    assert own.isfinite().all()
    assert near < 0.3 * far, (near, far)
