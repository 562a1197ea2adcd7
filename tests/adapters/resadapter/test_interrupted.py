"""Whatever line an operation is interrupted at, the UNet is as before it or as after it, and its record says which.

`BRICKWORK_LONG=1000 pytest tests/adapters/resadapter/test_interrupted.py -s` tries as many lines of each operation;
without it, 24.
"""

import copy
import os
import random
import sys
import threading

import pytest
import torch

from brickwork.adapters import modules
from brickwork.adapters.resadapter import functions, transaction
from brickwork.adapters.resadapter.state import STATE
from brickwork.adapters.resadapter.transaction import loaded_adapters

LONG = bool(os.environ.get("BRICKWORK_LONG"))
POINTS = int(os.environ.get("BRICKWORK_LONG") or 24)  # lines tried of one operation
KEY_FILES = ("transaction.py", "layer.py", "state.py")  # where most lines change something
CHANGING = (
    "brickwork/adapters/",
    "adapters/resadapter/",
    "adapters/base.py",
    "adapters/modules.py",
    "torch/nn/modules/module.py",
)


@pytest.fixture(autouse=True)
def own_locks(monkeypatch):
    """An interruption between the end of a `with` block and its lock's release, which Python cannot make good, would
    keep the lock from other threads: from those of other tests, too."""
    monkeypatch.setattr(transaction, "LOCK", threading.RLock())
    monkeypatch.setattr(modules, "_LOCK", threading.RLock())


class Interruption:
    """Raises `error` at the `at`-th line (0: none) that runs in the files where state is changed, and counts them.

    `again`: and once more at that many lines after the first, in whatever undoes it.
    """

    def __init__(self, at=0, error=KeyboardInterrupt, again=0):
        self.at, self.error, self.again, self.count, self.where = at, error, again, 0, None
        self.key = []

    def _line(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if frame.f_code.co_filename.endswith(KEY_FILES):
                self.key.append(self.count)
            if self.count == self.at or (self.again and self.count == self.at + self.again):
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                raise self.error(self.where)
        return self._line

    def _call(self, frame, event, argument):
        name = frame.f_code.co_filename
        return self._line if any(part in name for part in CHANGING) else None

    def run(self, action):
        """Whether the action ended by itself."""
        sys.settrace(self._call)
        try:
            action()
            return True
        except (KeyboardInterrupt, MemoryError):
            return False
        finally:
            sys.settrace(None)


def picture_of(unet):
    """Everything that a ResAdapter may change."""
    layers = {
        name: (type(module).__name__, [t.clone() for t in vars(module).get("adapter_tensors") or ()])
        for name, module in unet.named_modules()
        if not hasattr(module, "down_blocks")
    }
    state = vars(unet).get(STATE)
    adapters = {name: (a.lora, a.norm, a.enabled, a.automatic) for name, a in state.adapters.items()} if state else {}
    return {
        "weights": {key: value.clone() for key, value in unet.state_dict().items()},
        "layers": layers,
        "attributes": sorted(vars(unet)),
        "adapters": adapters,
        "fused": [record.name for record in state.fused] if state else [],
        "blocks": len(state.blocks) if state else 0,
        "hooks": (len(unet._forward_pre_hooks), len(unet._forward_hooks), len(unet._forward_hooks_with_kwargs)),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def operations(folders):
    """(name, what is done before, what is interrupted)."""
    load = functions.load_resadapter

    def two(unet):
        load(unet, folders[0], "a", scale=0.5)
        load(unet, folders[1], "b", scale=-1.0)

    def fused(unet):
        two(unet)
        functions.fuse_resadapter(unet)

    def block(unet):
        with functions.resadapter_at(unet, 0.25, "a"):
            pass

    return {
        "load the first": (lambda unet: None, lambda unet: load(unet, folders[0], "a", scale=0.5)),
        "load the second": (lambda unet: load(unet, folders[0], "a"), lambda unet: load(unet, folders[1], "b")),
        "load auto": (lambda unet: None, lambda unet: load(unet, folders[0], "a", scale="auto")),
        "scale": (two, lambda unet: functions.set_resadapter_scale(unet, 0.125, "b")),
        "scale to nothing": (two, lambda unet: functions.set_resadapter_scale(unet, 0.0)),
        "scale to auto": (two, lambda unet: functions.set_resadapter_scale(unet, lora_scale="auto")),
        "disable": (two, functions.disable_resadapter),
        "fuse one": (two, lambda unet: functions.fuse_resadapter(unet, "b")),
        "fuse all": (two, functions.fuse_resadapter),
        "unfuse one": (fused, lambda unet: functions.unfuse_resadapter(unet, "b")),
        "unfuse all": (fused, functions.unfuse_resadapter),
        "unload one": (two, lambda unet: functions.unload_resadapter(unet, "a")),
        "unload the fused": (fused, functions.unload_resadapter),
        "block": (two, block),
    }


@pytest.fixture(scope="module")
def ground(helpers, tmp_path_factory):
    """A UNet and two folders that fit it."""
    unet, folder = helpers.make_unet("mini"), tmp_path_factory.mktemp("adapters")
    tensors = [helpers.random_adapter_tensors(unet, rank=rank, seed=rank) for rank in (1, 2)]
    return unet, [helpers.write_official(folder / str(number), *pair) for number, pair in enumerate(tensors)]


def tried(whole):
    """Numbers of lines: all, or half of the sample from the files that change most."""
    dice, every = random.Random(0), range(1, whole.count + 1)
    if whole.count <= POINTS:
        return list(every)
    return sorted({*dice.sample(every, POINTS // 2), *dice.sample(whole.key, min(len(whole.key), POINTS // 2))})


@pytest.mark.parametrize("name", list(operations([0, 0])))
def test_before_or_after(ground, name):
    unet, folders = ground
    prepare, act = operations(folders)[name]
    before_unet = copy.deepcopy(unet)
    prepare(before_unet)
    before, after_unet = picture_of(before_unet), copy.deepcopy(before_unet)
    whole = Interruption()
    assert whole.run(lambda: act(after_unet))
    after, counts = picture_of(after_unet), {"before": 0, "after": 0}
    for number, at in enumerate(tried(whole)):
        broken = copy.deepcopy(before_unet)
        stop = Interruption(at, MemoryError if number % 2 else KeyboardInterrupt)
        assert not stop.run(lambda broken=broken: act(broken))
        if name == "block":  # what is left of it is harmless, and removed by the next operation
            loaded_adapters(broken)
        found = picture_of(broken)
        result = "before" if same(found, before) else "after" if same(found, after) else "between"
        assert result != "between", f"{name}, interrupted at {stop.where}"
        counts[result] += 1
    print(f"{name}: {whole.count} lines, interrupted at {sum(counts.values())}: {counts}")


def test_interrupted_again_while_putting_back(ground):
    """The next operation of any kind, also one that only looks, finishes what was begun."""
    unet, folders = ground
    for name, (prepare, act) in operations(folders).items():
        before_unet = copy.deepcopy(unet)
        prepare(before_unet)
        before, after_unet = picture_of(before_unet), copy.deepcopy(before_unet)
        whole = Interruption()
        whole.run(lambda act=act, after_unet=after_unet: act(after_unet))
        after = picture_of(after_unet)
        for at in tried(whole)[:: 1 if LONG else 5]:
            broken = copy.deepcopy(before_unet)
            stop = Interruption(at, again=random.Random(at).randint(1, 60))
            stop.run(lambda act=act, broken=broken: act(broken))
            loaded_adapters(broken)
            found = picture_of(broken)
            assert same(found, before) or same(found, after), f"{name}, interrupted at {stop.where}"


def test_random_sequences(ground, helpers):
    """Ten operations in a row, each interrupted once at a random line and then done, end where undisturbed ones do."""
    unet, folders = ground
    plain = picture_of(unet)
    names = [n for n in operations(folders) if n.startswith(("scale", "disable", "fuse", "unfuse", "block"))]
    for seed in range(100 if LONG else 4):
        dice, disturbed, calm = random.Random(seed), copy.deepcopy(unet), copy.deepcopy(unet)
        for target in (disturbed, calm):
            operations(folders)["scale"][0](target)
        for _ in range(10):
            act = operations(folders)[dice.choice(names)][1]
            Interruption(dice.randint(1, 1500)).run(lambda act=act, disturbed=disturbed: attempt(act, disturbed))
            if same(picture_of(disturbed), picture_of(calm)):
                attempt(act, disturbed)
            attempt(act, calm)
            assert same(picture_of(disturbed), picture_of(calm)), f"seed {seed}"
        for target in (disturbed, calm):
            functions.unload_resadapter(target)
            assert same(picture_of(target), plain)
        assert torch.equal(helpers.predict(disturbed), helpers.predict(unet))


def attempt(act, unet):
    try:
        act(unet)
    except ValueError:  # a refusal, such as of fusing twice
        pass
