"""What is particular to the handle of a ResAdapter and of an adapter made of modules; see `test_conformance`."""

import copy
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brickwork import load_adapter
from brickwork.adapters import base, modules


@pytest.fixture
def sources(official, tmp_path, unet, Shift):
    """A file or folder of each kind."""
    adapter = Shift.create(copy.deepcopy(unet), width=7)
    nn.init.ones_(adapter.parts.shift)
    return {"resadapter": official, "shift": adapter.save(tmp_path / "shift.safetensors")[0]}


def test_what_a_kind_cannot_do(unet, sources):
    res, shift = load_adapter(unet, sources["resadapter"]), load_adapter(unet, sources["shift"])
    with pytest.raises(ValueError, match="a resadapter takes no conditions"):
        res.condition(boxes=[])
    with pytest.raises(ValueError, match="nothing to train"):
        res.trainable_parameters()
    with pytest.raises(ValueError, match="not by create"):
        type(res).create(unet)
    with pytest.raises(ValueError, match="a shift cannot be fused"):
        shift.fuse()
    with pytest.raises(ValueError, match="'ofset'.*'offset'"), shift.condition(ofset=1):
        pass
    assert [parameter is shift.parts.shift for parameter in shift.trainable_parameters()] == [True]


def test_a_resadapter_fuses_by_its_handle(unet, official, helpers):
    plain = helpers.predict(unet)
    adapter = load_adapter(unet, official, scale=0.5)
    assert adapter.name == "res" and load_adapter(unet, official, scale=0.0).name == "res_2"
    adapter.fuse()
    assert not torch.equal(helpers.predict(unet), plain)
    adapter.unfuse()
    adapter.unload()
    assert torch.equal(helpers.predict(unet), plain)


def test_conditions_hold_in_their_thread(unet, sources, helpers):
    adapter = load_adapter(unet, sources["shift"])
    on = helpers.predict(unet)
    seen = []
    with adapter.condition(offset=2.0, scale=0.5):
        assert not torch.equal(helpers.predict(unet), on)
        thread = threading.Thread(target=lambda: seen.append(helpers.predict(unet)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], on) and torch.equal(helpers.predict(unet), on)


def test_recomputed_in_backward_under_the_same_conditions(unet, sources):
    adapter = load_adapter(unet, sources["shift"])
    inputs = torch.randn(1, 4, 8, 8, requires_grad=True)
    gradients = []
    for again in (False, True):
        with adapter.condition(offset=3.0):
            run = torch.utils.checkpoint.checkpoint if again else lambda call, x, use_reentrant: call(x)
            run(lambda x: unet.conv_in(x).square(), inputs, use_reentrant=False).sum().backward()
        gradients.append(adapter.parts.shift.grad.clone())
        adapter.parts.shift.grad = None
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, m: (t, m | {"brickwork.adapter": "shfit"}), "'shfit'; did you mean 'shift'"),
        (lambda t, m: (t, m | {"brickwork.config": "[1]"}), "no JSON object"),
        (lambda t, m: (t, m | {"brickwork.config": '{"witdh": 3}'}), "configuration is not a shift's"),
        (lambda t, m: (t, m | {"brickwork.config": '{"width": 0}'}), "`width` is 0"),
        (lambda t, m: ({"shift": torch.full((8,), torch.inf)}, m), "NaN or infinite"),
        (lambda t, m: ({"shift": torch.ones(9)}, m), "1 tensors differ"),
        (lambda t, m: ({"other": torch.ones(8)}, m), "2 tensors differ"),
    ],
)
def test_files_that_are_refused(unet, sources, tmp_path, change, message):
    metadata = base.read_metadata(sources["shift"])
    tensors, metadata = change(load_file(sources["shift"]), metadata)
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    attributes = set(vars(unet))
    with pytest.raises(ValueError, match=message):
        load_adapter(unet, tmp_path / "bad.safetensors")
    assert set(vars(unet)) == attributes and not unet.conv_in._forward_hooks


def test_arguments_that_are_refused(unet, sources, official):
    load_adapter(unet, sources["shift"], "mine")
    for arguments, message in (
        ({"name": "mine"}, "in use"),
        ({"name": "a.b"}, "without dots"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"norm_mode": "delta"}, "'norm_mode', which a shift does not take"),
    ):
        with pytest.raises(ValueError, match=message):
            load_adapter(unet, sources["shift"], **arguments)
    with pytest.raises(ValueError, match="is a int; give a network, or a pipeline"):
        load_adapter(3, sources["shift"])


def test_hooks_that_fail_leave_nothing(unet, sources, monkeypatch, Shift):
    def fail(self):
        yield self.network.conv_in, "post", lambda *arguments: None
        raise MemoryError

    monkeypatch.setattr(Shift, "hooks", fail)
    attributes = set(vars(unet))
    with pytest.raises(MemoryError):
        load_adapter(unet, sources["shift"])
    assert set(vars(unet)) == attributes and not unet.conv_in._forward_hooks


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_after_loading(helpers, tmp_path, in_place, Shift):
    """One graph takes new strengths and conditions, off is off; what it could not see is refused."""
    torch._dynamo.reset()
    network, plain = nn.ModuleDict({"conv_in": nn.Conv2d(4, 8, 3, padding=1)}), nn.Conv2d(4, 8, 3, padding=1)
    network.conv_in, network.forward = network["conv_in"], lambda x: network["conv_in"](x)
    plain.load_state_dict(network.conv_in.state_dict())
    adapter, x = Shift.create(network), torch.randn(1, 4, 5, 5)
    nn.init.ones_(adapter.parts.shift)
    compiled = network
    if in_place:
        network.compile(backend="eager", fullgraph=True)
    else:
        compiled = torch.compile(network, backend="eager", fullgraph=True)
    for scale in (1.0, 0.5, 0.0, 2.0):
        adapter.scale = scale
        torch.testing.assert_close(compiled(x), plain(x) + scale)
    with adapter.condition(offset=2.0):
        torch.testing.assert_close(compiled(x), plain(x) + 2 * 3.0)
    with pytest.raises(RuntimeError, match="one strength for all threads"), adapter.at(0.5):
        compiled(x)
    adapter.enabled = False
    assert torch.equal(compiled(x), plain(x))
    with pytest.raises(ValueError, match="load it first, then compile"):
        Shift.create(compiled)
    torch._dynamo.reset()


def test_interrupted_at_any_line(unet, sources):
    """Loading, switching and unloading an adapter made of modules: before or after, and its record says which."""

    def picture(adapter):
        hooks = [
            list(side.values()) for side in (unet.conv_in._forward_hooks, unet.conv_in._forward_hooks_with_kwargs)
        ]
        on = [hook for hook in hooks[0] if hook.adapter.strength() != 0]
        return len(hooks[0]), len(hooks[1]), len(on), sorted(vars(unet)), adapter is not None and adapter.enabled

    def undo(adapter):
        for one in list(modules.module_adapters(unet).values()):
            one.unload()
        return adapter

    operations = {
        "load": (lambda: None, lambda adapter: load_adapter(unet, sources["shift"])),
        "disable": (lambda: load_adapter(unet, sources["shift"]), lambda adapter: setattr(adapter, "enabled", False)),
        "unload": (lambda: load_adapter(unet, sources["shift"]), lambda adapter: adapter.unload()),
    }
    for name, (prepare, act) in operations.items():
        adapter = prepare()
        before = picture(adapter)
        counter = LineCounter()
        counter.run(lambda act=act, adapter=adapter: act(adapter))
        after, count = picture(adapter), counter.count
        undo(adapter)
        for at in range(1, count + 1):
            adapter = prepare()
            LineCounter(at).run(lambda act=act, adapter=adapter: act(adapter))
            found = picture(adapter)
            assert found == before or found == after or (name == "load" and found[:4] == after[:4]), (name, at)
            undo(adapter)


class LineCounter:
    """Counts the lines of `adapters/modules.py` that run, and interrupts at one."""

    def __init__(self, at=0):
        self.at, self.count = at, 0

    def _trace(self, frame, event, argument):
        if frame.f_code.co_filename != modules.__file__:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._trace

    def run(self, action):
        sys.settrace(self._trace)
        try:
            action()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
