"""What holds for every kind of adapter in `KINDS`, and for the smallest one there can be.

A new kind needs one line in `CASES`.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from brickwork import load_adapter
from brickwork.adapters import base
from brickwork.adapters.modules import module_adapters


@dataclass
class Case:
    """How a kind is tried.

    Attributes:
        network: makes one that it goes on, given the `helpers`.
        predict: the network's answer to a fixed input.
        config: of `create`; `None` where it is never created.
        fresh: further values of it with which the fresh adapter changes nothing.
        given: conditions under which it acts.
        options: of `load_adapter`.
    """

    network: Callable = lambda helpers: helpers.make_unet("two")
    predict: Callable = lambda helpers, network: helpers.predict.__wrapped__(network)
    config: dict | None = field(default_factory=dict)
    fresh: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)


def tiny_encoder():
    torch.manual_seed(3)
    return Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14)
    ).eval()


ENCODER = tiny_encoder()
CASES = {
    "resadapter": Case(config=None),
    "dino": Case(
        predict=lambda helpers, network: helpers.predict.__wrapped__(network, 8, 8),
        config={"encoder": ENCODER, "rank": 8},
        given={"reference_image": torch.linspace(0, 1, 3 * 20 * 30).view(3, 20, 30)},
        options={"encoder": ENCODER},
    ),
    "layout": Case(
        config={"dim": 16, "num_heads": 4},
        given={"boxes": [(0.1, 0.2, 0.6, 0.9)], "phrases": [[0.1] * 32]},
    ),
    "control": Case(config={"pixels": 1}, given={"image": torch.linspace(0, 1, 3 * 8 * 6).view(3, 8, 6)}),
    "kv_compression": Case(lambda helpers: helpers.make_unet("sd"), config={"ratio": 2}, fresh={"ratio": 1}),
    "shift": Case(given={"offset": 0.0}),
}


@dataclass
class Trial:
    """A case on a network of its own."""

    kind: str
    case: Case
    network: torch.nn.Module
    helpers: object
    folder: object

    def predict(self, network=None, adapter=None, gradients=False):
        """The answer of a network, by default its own, under the adapter's conditions if one is given."""
        given = nullcontext() if adapter is None or not self.case.given else adapter.condition(**self.case.given)
        with given, torch.set_grad_enabled(gradients):
            return self.case.predict(self.helpers, self.network if network is None else network)

    def trained(self):
        """An adapter with random weights on the network."""
        if self.case.config is None:
            tensors = self.helpers.random_adapter_tensors(self.network)
            return load_adapter(self.network, self.helpers.write_official(self.folder / "official", *tensors))
        adapter = base.adapter_class(self.kind).create(self.network, **self.case.config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapter.trainable_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return adapter


@pytest.fixture(params=sorted(CASES))
def trial(request, helpers, tmp_path, Shift):
    torch.manual_seed(0)
    case = CASES[request.param]
    return Trial(request.param, case, case.network(helpers), helpers, tmp_path)


def test_every_kind_has_a_case(Shift):
    assert set(CASES) == set(base.KINDS)


def test_fresh_ones_change_nothing(trial):
    if trial.case.config is None:
        pytest.skip("made by its own training")
    plain = trial.predict()
    adapter = base.adapter_class(trial.kind).create(trial.network, **trial.case.config | trial.case.fresh)
    assert torch.equal(trial.predict(adapter=adapter), plain)


def test_on_off_and_unloaded(trial):
    plain, attributes = trial.predict(), set(vars(trial.network))
    tensors = {name: tensor.clone() for name, tensor in trial.network.state_dict().items()}
    adapter = trial.trained()
    on = trial.predict(adapter=adapter)
    assert (adapter.kind, adapter.scale, adapter.enabled) == (trial.kind, 1.0, True)
    assert not torch.equal(on, plain) and torch.isfinite(on).all()
    assert trial.network.state_dict().keys() == tensors.keys()
    adapter.scale = 0
    assert torch.equal(trial.predict(adapter=adapter), plain)
    with adapter.at(1.0):
        assert torch.equal(trial.predict(adapter=adapter), on)
    adapter.scale, adapter.enabled = 1.0, False
    assert torch.equal(trial.predict(), plain)
    adapter.enabled = True
    assert torch.equal(trial.predict(adapter=adapter), on)
    adapter.unload()
    assert torch.equal(trial.predict(), plain) and set(vars(trial.network)) == attributes
    assert not any(
        hooks for module in trial.network.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )
    for name, tensor in trial.network.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    with pytest.raises(ValueError, match="load"):
        adapter.enabled = True


def test_saved_alone_and_found_by_its_file(trial):
    adapter = trial.trained()
    on = trial.predict(adapter=adapter)
    (file,) = adapter.save(trial.folder / "saved.safetensors")
    with pytest.raises(ValueError, match="there already"):
        adapter.save(file)
    assert base.kind_of(file) == trial.kind
    keys = set(load_file(file))
    assert keys and not keys & set(trial.network.state_dict())
    if adapter in module_adapters(trial.network).values():
        assert keys == set(adapter.state())
    adapter.unload()
    again = load_adapter(trial.network, file, "again", 0.5, **trial.case.options)
    assert (again.name, again.scale, type(again)) == ("again", 0.5, type(adapter))
    again.scale = 1.0
    torch.testing.assert_close(trial.predict(adapter=again), on, rtol=0, atol=1e-5)


def test_a_copied_network_has_its_own(trial):
    plain, adapter = trial.predict(), trial.trained()
    twin = copy.deepcopy(trial.network)
    adapter.unload()
    assert torch.equal(trial.predict(), plain)
    own = next(iter(module_adapters(twin).values()), None)
    assert not torch.equal(trial.predict(twin, own), plain)


def test_every_weight_is_trained_and_the_network_is_not(trial):
    if trial.case.config is None:
        pytest.skip("made by its own training")
    adapter = trial.trained()
    trial.network.requires_grad_(False)
    trial.predict(adapter=adapter, gradients=True).square().sum().backward()
    without = [name for name, one in adapter.parts.named_parameters() if one.requires_grad and one.grad is None]
    assert not [name for name in without if name.partition(".")[0] not in adapter.frozen]
    assert all(parameter.grad is None for parameter in trial.network.parameters())
