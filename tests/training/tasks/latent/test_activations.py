"""The memory that a plan states, against what a real step keeps."""

import pytest
import torch

from brickwork.training.tasks.latent.task import kept_bytes


def really_kept(unet, batch, height, width) -> int:
    """Bytes that autograd holds after a forward pass on the CPU, without the weights."""
    kept = {parameter.untyped_storage().data_ptr(): None for parameter in unet.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sample, text = torch.randn(batch, 4, height, width), torch.randn(batch, 12, 8)
        output = unet.train()(sample, torch.zeros(batch), text).sample
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values() if storage is not None)


@pytest.mark.parametrize("kind", ["interpolation", "both"])
def test_it_is_what_a_step_keeps(tiny_run, kind):
    run = tiny_run("run", f"adapter.kind={kind}")
    pipeline = run.task.base
    stated = kept_bytes(pipeline, 3, 32, 24, "no")
    assert stated == pytest.approx(really_kept(run.task.network, 3, 32, 24), rel=0.1)
    assert kept_bytes(pipeline, 6, 32, 24, "no") == pytest.approx(2 * stated, rel=0.01)
    run.task.network.enable_gradient_checkpointing()
    assert kept_bytes(pipeline, 3, 32, 24, "no") < stated / 3


def test_sdxl_in_half_precision(tiny_run):
    pipeline = tiny_run("run", kind="sdxl").task.base
    assert 0 < kept_bytes(pipeline, 1, 16, 8, "bf16") < kept_bytes(pipeline, 1, 16, 8, "no")
