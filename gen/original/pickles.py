"""Read the tensors of a pickled module without running anything of the pickle.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the program names. The
one here lets `pickletools` take the program apart, knows only the instructions that a pickled network needs and never
imports or calls: a name stays a name, an object becomes a `Record` of its state, and long bytes stay where they lie in
the file until a tensor is read from them. The few functions that rebuild tensors are known by name and done here;
every other name is refused.

The files in mind are EDM-style snapshots, `{"ema": module, "loss_fn": ..., ...}`, written by the persistence wrapper
of NVIDIA's `torch_utils`, whose source code is in the file too; here it is a text like any other.
"""

import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

# The largest network of the authors (XL-U-32) takes about 130,000 instructions, and its longest text is a source file.
MAX_INSTRUCTIONS = 2_000_000
MAX_TEXT = 1 << 20
MAX_NAME = 64
MAX_DEPTH = 32

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

# What may stand for a class. It is never imported, so what the name would lead to makes no difference.
_STAND_IN = re.compile(r"(torch\.nn|timm|training|torch_utils|dnnlib)(\.[A-Za-z_]\w*)+", re.ASCII)


@dataclass(frozen=True)
class Name:
    """A class or function that the file names; never imported."""

    module: str
    name: str


@dataclass(frozen=True)
class StoredTensor:
    """Where a contiguous tensor, or a storage, a tensor of one dimension, lies in the file."""

    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(eq=False, repr=False)
class Record:
    """An object of the file: its state, and its items if its class is a kind of dict."""

    state: dict | None = None
    items: dict = field(default_factory=dict)


_STORAGES = {
    Name("torch", f"{kind}Storage"): dtype
    for kind, dtype in (
        ("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16),
        ("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8),
        ("Byte", torch.uint8), ("Bool", torch.bool),
    )
}  # fmt: skip


class Stretch:
    """Bytes of the file from `at` to `stop`, as `pickletools` reads them; what is too long for a text stays there."""

    def __init__(self, buffer: mmap.mmap, at: int, stop: int):
        self.buffer, self.at, self.stop = buffer, at, stop

    def tell(self) -> int:
        return self.at

    def read(self, count: int) -> bytes | range:
        """The next bytes, fewer at the end, or of more than `MAX_TEXT` where they lie."""
        found = range(self.at, min(self.at + count, self.stop))
        self.at = found.stop
        return found if len(found) > MAX_TEXT else self.buffer[found.start : found.stop]

    def readline(self) -> bytes:
        """A line that is as short as a name's; nothing where there is none."""
        return self.read(self.buffer.find(b"\n", self.at, min(self.stop, self.at + 256)) + 1 - self.at)


class Machine:
    """The stack machine. `run` reads one pickle, and leaves the stretch behind it for the next.

    Args:
        stretch: what to read.
        steps: iterator that grants one instruction each time; shared with the machines that read nested pickles.
        nested: read what lies in the bytes of a storage, rather than the objects of the file.
    """

    def __init__(self, stretch: Stretch, steps: Iterator[int], nested: bool = False):
        self.stretch, self.steps, self.nested = stretch, steps, nested

    @property
    def at(self) -> int:
        return self.stretch.at

    def run(self) -> object:
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        instructions = pickletools.genops(self.stretch)
        for _ in self.steps:
            start = self.at
            try:
                known, argument, _ = next(instructions)
            except ValueError as error:
                raise self.damaged(str(error)) from None
            except TypeError:  # bytes that stayed in the file are no text
                raise ValueError(
                    f"at byte {start} it has a text of {self.at - start - 5} bytes; at most {MAX_TEXT} are read."
                ) from None
            code = known.code.encode("latin-1")
            if code == pickle.STOP:
                return self.operands((object,), False)[0]
            if code not in _INSTRUCTIONS:
                raise ValueError(f"at byte {start} it has the instruction {known.name}; the authors' files never do.")
            kinds, act = _INSTRUCTIONS[code]
            marked = pickletools.markobject in known.stack_before
            self.stack += act(self, argument, *self.operands(kinds, marked))
        raise ValueError(f"it has more than {MAX_INSTRUCTIONS:,} instructions, many times what a network needs.")

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"it is cut off or damaged: {what} (at byte {self.at}).")

    def operands(self, kinds: tuple, marked: bool) -> list:
        """What an instruction works on, taken off the stack: of these kinds, and if `marked` behind them one list."""
        behind = []
        if marked:
            if not self.marks:
                raise self.damaged("a mark is missing")
            mark = self.marks.pop()
            behind.append(self.stack[mark:])
            del self.stack[mark:]
        first, floor = len(self.stack) - len(kinds), self.marks[-1] if self.marks else 0
        if first < floor or not all(map(isinstance, self.stack[first:], kinds)):
            raise self.damaged("an instruction does not find what it works on")
        found = self.stack[first:]
        del self.stack[first:]
        return found + behind

    def bytes_read(self, value: bytes | range) -> tuple[range]:
        """The range in which bytes just read lie."""
        return (range(self.at - len(value), self.at),)

    def set_items(self, _: None, target: "dict | Record", items: list) -> tuple[object]:
        if len(items) % 2:
            raise self.damaged("a key has no value")
        keys = items[::2]
        # Hashing is refused for all else: a tuple nested deeply enough would overflow the interpreter's own stack.
        if any(type(key) not in (str, int) for key in keys):
            raise ValueError(f"before byte {self.at} it has a dict with keys that are neither texts nor integers.")
        (target.items if isinstance(target, Record) else target).update(zip(keys, items[1::2]))
        return (target,)

    def extend(self, _: None, target: list, items: list) -> tuple[list]:
        target += items
        return (target,)

    def memoize(self, index: int | None, value: object) -> tuple[object]:
        self.memo[len(self.memo) if index is None else index] = value
        return (value,)

    def recall(self, index: int) -> tuple[object]:
        if index not in self.memo:
            raise self.damaged(f"object {index} is recalled but was never kept")
        return (self.memo[index],)

    def name(self, _: object, module: str, name: str) -> tuple[Name]:
        target = Name(module, name)
        stands_in = "." not in name and _STAND_IN.fullmatch(f"{module}.{name}") is not None
        allowed = target in _STORAGES if self.nested else target in _REBUILDERS or stands_in
        if not allowed:
            full = ascii(f"{module}.{name}")[:120]
            raise ValueError(f"it names {full}, which no network of the authors needs; it was not imported.")
        return (target,)

    def call(self, _: None, target: Name, arguments: tuple) -> tuple[object]:
        if target not in _REBUILDERS:
            return (Record(),)
        rebuild, fewest, most = _REBUILDERS[target]
        if not fewest <= len(arguments) <= most:
            raise self.damaged(f"{target.name} has {len(arguments)} arguments")
        return (rebuild(self, *arguments),)

    def build(self, _: None, target: Record, state: dict) -> tuple[Record]:
        if target.state is not None:
            raise self.damaged("an object is given its state twice")
        target.state = state
        return (target,)

    def storage(self, _: None, identity: object) -> tuple[tuple]:
        """A storage's persistent id, `("storage", type, key, device, count, view)` => `(dtype, key, count)`."""
        if not self.nested:
            raise ValueError(f"before byte {self.at} it refers to something outside the file.")
        if not isinstance(identity, tuple) or len(identity) != 6:
            raise self.damaged("a storage makes no sense")
        _, kind, key, _, count, _ = identity
        if not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
            raise self.damaged("a storage makes no sense")
        return ((_STORAGES[kind], key, count),)


def _read_storage(machine: Machine, given: object) -> StoredTensor:
    """torch's legacy format, nested in bytes: magic, version, system, storage, its key; then the numbers."""
    if not isinstance(given, range):
        raise machine.damaged("a storage is not made of bytes")
    stretch = Stretch(machine.stretch.buffer, given.start, given.stop)
    reader = Machine(stretch, machine.steps, nested=True)
    magic, version, system, storage, keys = (reader.run() for _ in range(5))
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION:
        raise machine.damaged("a storage is not in torch's legacy format")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"the storage before byte {machine.at} is not in little-endian order.")
    if not isinstance(storage, tuple) or len(storage) != 3 or keys != [storage[1]]:
        raise machine.damaged("bytes do not hold exactly one storage")
    dtype, _, count = storage
    stated = int.from_bytes(stretch.read(8), "little", signed=True)
    if stated != count or given.stop - reader.at != count * dtype.itemsize:
        raise machine.damaged("a storage does not hold as many numbers as it declares")
    return StoredTensor(dtype, reader.at, (count,))


def _read_tensor(machine: Machine, storage: object, offset: object, shape: object, stride: object, *_) -> StoredTensor:
    sizes = all(isinstance(value, tuple) and len(value) <= 8 for value in (shape, stride))
    if not isinstance(storage, StoredTensor) or not sizes or len(shape) != len(stride):
        raise machine.damaged("a tensor makes no sense")
    if any(type(value) is not int or value < 0 for value in (offset, *shape, *stride)) or 0 in shape:
        raise machine.damaged("a tensor is empty or has an impossible shape")
    count = 1
    for size, step in zip(reversed(shape), reversed(stride)):
        if size > 1 and step != count:
            raise ValueError(f"the tensor of shape {shape} before byte {machine.at} is not contiguous.")
        count *= size
    if offset + count > storage.count:
        raise machine.damaged(f"a tensor of shape {shape} is larger than its storage of {storage.count}")
    return StoredTensor(storage.dtype, storage.start + offset * storage.dtype.itemsize, shape)


def _read_parameter(machine: Machine, data: object, *_) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise machine.damaged("a parameter is not a tensor")
    return data


def _read_persistent(machine: Machine, meta: object) -> Record:
    """The wrapper's description of an object: all but its state, the source code included, is left alone."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise machine.damaged("a persistent object has no state")
    return Record(meta["state"])


# What torch and Python name for tensors, ordered dicts and sets: (what to do instead, fewest and most arguments).
_REBUILDERS: dict[Name, tuple[Callable, int, int]] = {
    Name("collections", "OrderedDict"): (lambda machine: {}, 0, 0),
    # Sets are bookkeeping that no tensor hangs on: their members are not kept.
    Name("builtins", "set"): (lambda machine, members=(): set(), 0, 1),
    Name("__builtin__", "set"): (lambda machine, members=(): set(), 0, 1),
    Name("torch._utils", "_rebuild_tensor_v2"): (_read_tensor, 6, 7),
    Name("torch._utils", "_rebuild_parameter"): (_read_parameter, 3, 3),
    Name("torch.storage", "_load_from_bytes"): (_read_storage, 1, 1),
    Name("torch_utils.persistence", "_reconstruct_persistent_obj"): (_read_persistent, 1, 1),
}

_VALUES = (
    pickle.NONE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.SHORT_BINUNICODE,
    pickle.BINUNICODE,
)  # fmt: skip
# Instructions by code: kinds of what they take off the stack, but for what lies behind a mark; and what they put on it
# instead, from the machine, the instruction's argument and what was taken.
_INSTRUCTIONS: dict[bytes, tuple[tuple, Callable]] = {
    **dict.fromkeys((pickle.PROTO, pickle.FRAME), ((), lambda machine, _: ())),
    **dict.fromkeys(_VALUES, ((), lambda machine, value: (value,))),
    **dict.fromkeys((pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8), ((), Machine.bytes_read)),
    **dict.fromkeys((pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT), ((object,), Machine.memoize)),
    **dict.fromkeys((pickle.BINGET, pickle.LONG_BINGET), ((), Machine.recall)),
    pickle.NEWTRUE: ((), lambda machine, _: (True,)),
    pickle.NEWFALSE: ((), lambda machine, _: (False,)),
    pickle.EMPTY_TUPLE: ((), lambda machine, _: ((),)),
    pickle.EMPTY_LIST: ((), lambda machine, _: ([],)),
    pickle.EMPTY_DICT: ((), lambda machine, _: ({},)),
    pickle.EMPTY_SET: ((), lambda machine, _: (set(),)),
    pickle.MARK: ((), lambda machine, _: machine.marks.append(len(machine.stack)) or ()),
    pickle.TUPLE1: ((object,), lambda machine, _, *items: (items,)),
    pickle.TUPLE2: ((object,) * 2, lambda machine, _, *items: (items,)),
    pickle.TUPLE3: ((object,) * 3, lambda machine, _, *items: (items,)),
    pickle.TUPLE: ((), lambda machine, _, items: (tuple(items),)),
    pickle.APPEND: ((list, object), lambda machine, _, target, *items: machine.extend(_, target, items)),
    pickle.APPENDS: ((list,), Machine.extend),
    pickle.ADDITEMS: ((), lambda machine, _, items: ()),
    pickle.SETITEM: (
        ((dict, Record), object, object),
        lambda machine, _, target, *pair: machine.set_items(_, target, pair),
    ),
    pickle.SETITEMS: (((dict, Record),), Machine.set_items),
    pickle.GLOBAL: ((), lambda machine, names: machine.name(None, *names.split(" ", 1))),
    pickle.STACK_GLOBAL: ((str, str), Machine.name),
    pickle.REDUCE: ((Name, tuple), Machine.call),
    pickle.NEWOBJ: ((Name, tuple), lambda machine, _, kind, arguments: (Record(),)),
    pickle.BUILD: ((Record, dict), Machine.build),
    pickle.BINPERSID: ((object,), Machine.storage),
}


_HELD = ("_modules", "_parameters", "_buffers")


def walk_modules(root: Record) -> Iterator[tuple[str, Record]]:
    """The modules of a tree with their dotted names, parents first.

    Raises:
        ValueError: if the tree is no tree (a module twice, or inside itself), or deeper than any network. Nor may two
            modules share what they hold, or a small file would be walked for hours.
    """
    waiting, seen = [("", 0, root)], set()
    while waiting:
        prefix, depth, module = waiting.pop()
        if not isinstance(module, Record) or module.state is None or depth > MAX_DEPTH:
            raise ValueError(f"the module {prefix[:120]!r} is empty, nested too deeply, or no module.")
        held = [module, module.state, *(module.state.get(kind) for kind in _HELD)]
        parts = {id(part) for part in held if part}
        if len(parts) < sum(bool(part) for part in held) or parts & seen:
            raise ValueError(f"the module {prefix[:120]!r}, or something that it holds, is there more than once.")
        seen |= parts
        yield prefix, module
        for name, child in reversed(_entries(module, "_modules")):
            waiting.append((f"{prefix}.{name}".lstrip("."), depth + 1, child))


def _entries(module: Record, kind: str) -> list[tuple[str, object]]:
    """What is in a module's `_modules`, `_parameters` or `_buffers`."""
    entries = module.state.get(kind, {})
    # Names are short, or the joined ones of a deep tree could fill the memory.
    if not isinstance(entries, dict) or any(len(str(name)) > MAX_NAME for name in entries):
        raise ValueError(f"a module's `{kind}` is no dict with names of at most {MAX_NAME} letters.")
    return [(name, value) for name, value in entries.items() if value is not None]


def find_contents(root: Record) -> tuple[dict[str, StoredTensor], dict[str, dict[str, bool | int | float | str]]]:
    """What a module and all modules inside hold, by dotted name: parameters and buffers, and plain attributes."""
    tensors, attributes, plain = {}, {}, (bool, int, float, str)
    for prefix, module in walk_modules(root):
        attributes[prefix] = {name: value for name, value in module.state.items() if isinstance(value, plain)}
        for name, tensor in _entries(module, "_parameters") + _entries(module, "_buffers"):
            full = f"{prefix}.{name}".lstrip(".")
            if not isinstance(tensor, StoredTensor) or full in tensors:
                raise ValueError(f"{full[:120]!r} is not a tensor, or there twice.")
            tensors[full] = tensor
    return tensors, attributes


def load_pickled_module(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """The tensors and plain attributes of the module under `ema` of a pickled dict; what lies beside it is not used.

    Tensors keep their stored dtype and are read one by one, so the memory is what they take and little more.

    Args:
        path: a pickle of protocol 2 to 5.

    Returns:
        The tensors by dotted name (`"model.t_embedder.mlp.0.weight"`), and for each module by dotted name (`""` for
        the outermost) its attributes that are numbers or texts.

    Raises:
        ValueError: if the file is no such pickle, is damaged, or asks for anything that a checkpoint does not need.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if not size:
            raise ValueError("it is empty.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            if buffer[:1] != pickle.PROTO:
                raise ValueError(f"it is not a pickle: it begins with {buffer[:8]!r}.")
            content = Machine(Stretch(buffer, 0, size), iter(range(MAX_INSTRUCTIONS))).run()
        module = content.get("ema") if isinstance(content, dict) else None
        if not isinstance(module, Record):
            raise ValueError("it is not a snapshot of the authors: it holds no module under 'ema'.")
        stored, attributes = find_contents(module)
        # Tensors may share a storage, so that a small file could ask for any amount of memory.
        if sum(tensor.nbytes for tensor in stored.values()) > size:
            raise ValueError("its tensors claim more bytes than it has.")
        tensors = {}
        for name, tensor in stored.items():
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            file.seek(tensor.start)
            if file.readinto(memoryview(tensors[name].view(-1).view(torch.uint8).numpy())) != tensor.nbytes:
                raise ValueError("it was cut off while it was being read.")
    return tensors, attributes
