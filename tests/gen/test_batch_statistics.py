"""BatchNorm in a denoiser: averaged weights with statistics of their own."""

import copy

import pytest
import torch

from brickwork.gen.batch_statistics import has_batch_norm, recalibrate_batch_norm
from brickwork.gen.objectives import EDMObjective
from brickwork.gen.transformer import BlockTransformer2DModel
from brickwork.pipelines.class_to_image import ClassToImagePipeline


def make_network(block="i2rmb", seed=0):
    torch.manual_seed(seed)
    model = BlockTransformer2DModel(
        sample_size=8,
        in_channels=3,
        num_layers=2,
        hidden_size=16,
        block_types=block,
        attention_head_dim=8,
        window_size=4,
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batches(count=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [((torch.randn(16, 3, 8, 8, generator=generator) * 0.5 + 0.2), None) for _ in range(count)]


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def test_recalibrated_statistics_are_those_of_the_data():
    model, seen = make_network(), []
    norm = model.blocks[0].conv_norm
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert recalibrate_batch_norm(model, EDMObjective(), batches(), torch.Generator().manual_seed(0)) == 20
    handle.remove()
    expected = torch.stack([maps.mean(dim=(0, 2, 3)) for maps in seen]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    expected = torch.stack([maps.transpose(0, 1).flatten(1).var(dim=1) for maps in seen]).mean(dim=0)
    torch.testing.assert_close(norm.running_var, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training and not model.training


def test_sampling_from_averaged_weights_needs_their_statistics():
    """In eval mode the recalibrated network does what it does in training; one with foreign statistics does not."""
    average = make_network()
    foreign = copy.deepcopy(average)
    for module in foreign.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=3.0)
            module.running_var.uniform_(5.0, 20.0)
    own = copy.deepcopy(foreign)
    recalibrate_batch_norm(own, EDMObjective(), batches(60), torch.Generator().manual_seed(0))

    def draw(model, train=False):
        pipe = ClassToImagePipeline.from_objective(model.train(train), EDMObjective())
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe([None] * 64, num_inference_steps=6, output_type="latent", generator=generator).images

    sample, timestep = EDMObjective().network_inputs(
        batches(1)[0][0], torch.randn(16, 3, 8, 8), torch.full((16,), 0.3)
    )
    with torch.no_grad():
        reference = copy.deepcopy(own).train()(sample, timestep).sample
        near = (own.eval()(sample, timestep).sample - reference).norm()
        far = (foreign.eval()(sample, timestep).sample - reference).norm()
    assert near < 0.5 * far
    drawn, wrong, wanted = draw(own), draw(foreign), draw(copy.deepcopy(own), train=True)
    assert drawn.isfinite().all()
    assert (drawn - wanted).norm() < (wrong - wanted).norm()


def test_without_data_or_batch_norm_nothing_changes():
    model = make_network()
    before = statistics(model)
    assert recalibrate_batch_norm(model, EDMObjective(), []) == 0
    assert all(torch.equal(before[name], buffer) for name, buffer in statistics(model).items())
    assert has_batch_norm(model) and not has_batch_norm(make_network("dit"))
    with pytest.raises(ValueError, match="no BatchNorm"):
        recalibrate_batch_norm(make_network("dit"), EDMObjective(), batches())
