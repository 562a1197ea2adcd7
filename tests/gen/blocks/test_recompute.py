"""Results that the backward pass computes again: the same gradients, less that is kept."""

import pytest
import torch
from torch import nn

from brickwork.gen.blocks.dit import DiTTokenBlock, modulated_norm, residual_and_norm
from brickwork.gen.blocks.recompute import not_kept, recomputed


def squared(x, y):
    return (x * y).tanh(), x.square().exp()


def random_block(dim):
    """With numbers everywhere: a fresh block's gates are zero."""
    block = DiTTokenBlock(dim, 2, 4.0, dim)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def loss_of(way, x, y, layer):
    first, second = way(squared, x, y)
    with not_kept(first):
        return layer(first).square().sum() + second.sum()


def test_gradients_are_the_same(inputs):
    layer = nn.Linear(4, 5).double()
    wanted = torch.autograd.grad(loss_of(lambda f, *a: f(*a), *inputs, layer), [*inputs, *layer.parameters()])
    found = torch.autograd.grad(loss_of(recomputed, *inputs, layer), [*inputs, *layer.parameters()])
    for a, b in zip(wanted, found):
        torch.testing.assert_close(a, b)


def test_gradients_of_gradients_are_the_same(inputs):
    """Inputs that were made from one another, as in a block, must not be counted twice."""
    x, _ = inputs
    layer, results = nn.Linear(4, 4).double(), []
    for way in (lambda f, *a: f(*a), recomputed):
        (gradient,) = torch.autograd.grad(loss_of(way, x, x * 3, layer), x, create_graph=True)
        results.append((gradient, *torch.autograd.grad(gradient.square().sum(), [x, layer.weight])))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_an_unused_output_and_an_input_without_gradient(inputs):
    x, y = inputs[0], inputs[1].detach()
    recomputed(squared, x, y)[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(squared(x, y)[0].sum(), x)[0])


def test_the_output_is_not_kept(inputs):
    x, y = (tensor.detach().repeat(100, 1).requires_grad_() for tensor in inputs)
    layer, computed = nn.Linear(4, 1).double(), []

    def count(x, y):
        computed.append(True)
        return x * y

    middle = recomputed(count, x, y)
    with not_kept(middle):
        out = layer(middle)
    assert len(computed) == 1
    out.sum().backward()
    assert len(computed) == 2  # once for the layer's weight and for the inputs together
    torch.testing.assert_close(layer.weight.grad, (x * y).sum(0, keepdim=True))


def test_without_gradients_nothing_is_added(inputs):
    with torch.no_grad():
        assert recomputed(torch.mul, *inputs).grad_fn is None
    with not_kept(torch.ones(3)):
        assert (inputs[0] * 2).requires_grad


def test_a_block_keeps_little():
    """Of a block's tokens: query, key, value, attention, its projection, the MLP's four and output, the result."""
    from brickwork.eval.benchmark.memory import TensorBytes

    dim, tokens = 32, 40
    block = random_block(dim)
    hidden, temb = torch.randn(2, 3, tokens, dim, requires_grad=True), torch.randn(2, dim)
    with TensorBytes() as counted:
        out = block(hidden, temb)
        weights = sum(parameter.nbytes for parameter in block.parameters() if parameter.ndim == 2)
        assert counted.now - weights < 11.5 * out.nbytes  # 17 and more if autograd were left to itself


def test_gradient_checkpointing_keeps_the_input_alone():
    """Of nested hooks only the innermost count: ours must not hold what checkpointing puts away."""
    from torch.utils.checkpoint import checkpoint

    from brickwork.eval.benchmark.memory import TensorBytes

    block = random_block(32)
    hidden, temb = torch.randn(2, 3, 40, 32, requires_grad=True), torch.randn(2, 32)
    with TensorBytes() as counted:
        out = checkpoint(block, hidden, temb, use_reentrant=False)
        weights = sum(parameter.nbytes for parameter in block.parameters() if parameter.ndim == 2)
        assert counted.now - weights < 2 * out.nbytes
    out.square().sum().backward()
    wanted = torch.autograd.grad(block(hidden, temb).square().sum(), list(block.parameters()))
    for parameter, gradient in zip(block.parameters(), wanted):
        torch.testing.assert_close(parameter.grad, gradient)


def test_torch_func():
    block = random_block(16)
    hidden, temb = torch.randn(1, 2, 20, 16), torch.randn(1, 16)
    wanted = torch.func.grad(lambda x: block(x, temb).square().sum())(hidden)
    hidden.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(block(hidden, temb).square().sum(), hidden)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_in_the_backward_pass(dtype):
    """The recomputation runs in the formats of the first pass."""
    block = random_block(16)
    hidden, temb = torch.randn(1, 2, 20, 16).to(dtype), torch.randn(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        block(hidden, temb).float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())


def test_norm_and_residual_are_as_defined():
    hidden, update = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    gate, shift, scale = torch.randn(3, 2, 8)
    residual, normed = residual_and_norm(hidden, gate, update, shift, scale)
    expected = hidden + gate[:, None, None] * update
    torch.testing.assert_close(residual, expected)
    mean, var = expected.mean(-1, keepdim=True), expected.var(-1, correction=0, keepdim=True)
    by_hand = (expected - mean) / (var + 1e-6).sqrt() * (1 + scale[:, None, None]) + shift[:, None, None]
    torch.testing.assert_close(normed, by_hand, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(modulated_norm(expected, shift, scale), normed)
