"""Hostile, damaged and foreign files: a `ValueError` that names the file, and nothing of them is run."""

import copyreg
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brickwork.gen.original import pickles
from brickwork.gen.original.lego_checkpoints import load_original_lego


class Call:
    """An object that a pickle makes by calling `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def payloads(marker: Path) -> dict[str, object]:
    command = f"mkdir {marker}"
    return {
        "os.mkdir": Call(os.mkdir, str(marker)),
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "exec": Call(exec, f"import os\nos.mkdir({str(marker)!r})"),
        "check_call": Call(subprocess.check_call, ["mkdir", str(marker)]),
        "nested": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, str(marker)))),
    }


def _strangers(before: set[str]) -> set[str]:
    """Modules imported since, but for those that torch and zipfile load when they first need them."""
    return {name for name in set(sys.modules) - before if not name.startswith(("torch.", "encodings."))}


@pytest.fixture
def refused(tmp_path, marker):
    """Reads bytes as a checkpoint and returns the message of the `ValueError`, once nothing was run."""

    def read(content: bytes, name: str = "snapshot.pkl") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        before = set(sys.modules)
        with pytest.raises(ValueError) as error:
            load_original_lego(path, num_attention_heads=2)
        assert not marker.exists(), "something in the file was run"
        assert not _strangers(before), "something in the file was imported"
        assert name in str(error.value)
        return str(error.value)

    return read


@pytest.mark.parametrize("payload", payloads(Path("marker")))
def test_python_itself_would_run_the_payloads(marker, payload):
    try:
        pickle.loads(pickle.dumps(payloads(marker)[payload]))
    except RuntimeError:  # torch refuses what the nested pickle gives, after running it
        pass
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("payload", payloads(Path("marker")))
def test_calls_are_refused_wherever_they_stand(maker, tiny, refused, marker, payload, protocol):
    call = payloads(marker)[payload]
    network = maker.network(tiny)
    for content in (
        call,
        {"ema": call},
        {"ema": network, "loss_fn": call},
        {"loss_fn": [call], "ema": network},
        maker.snapshot(maker.network(tiny, training=call)),
        maker.snapshot(maker.network(tiny, _buffers={"table": call})),
    ):
        message = refused(pickle.dumps(content, protocol=protocol))
        assert "it names" in message or protocol < 3  # older pickles name other things as well, or are not read at all


def test_the_refused_name_is_told(refused):
    assert "'os.system'" in refused(b"\x80\x02cos\nsystem\n.")
    assert "it is not a pickle" in refused(b"cos\nsystem\n.")


def _stack_global(module: bytes, name: bytes) -> bytes:
    return b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nmkdir\n(\x8c\x06markertR.",
        b"(\x8c\x06markerios\nmkdir\n.",
        b"(cos\nmkdir\n\x8c\x06markero.",
        b"\x82\xf0(\x8c\x06markertR.",
        b"\x83\xf0\x00.",
        b"\x84\xf0\x00\x00\x00.",
        b"Pmarker\n.",
        b"\x8c\x06markerQ.",
        _stack_global(b"os", b"mkdir") + b"\x8c\x06marker\x85R.",
        _stack_global(b"subprocess", b"Popen") + b"\x8c\x06marker\x85\x81.",
        _stack_global(b"subprocess", b"Popen") + b")}\x92.",
        _stack_global(b"torch.nn.modules", b"os.mkdir") + b"\x8c\x06marker\x85R.",
        _stack_global(b"torch.nn.modules.module", b"warnings.sys.modules") + b".",
        _stack_global(b"collections", b"OrderedDict.fromkeys") + b".",
        _stack_global(b"copyreg", b"_reconstructor") + b".",
        _stack_global(b"torch.nn.", b"x") + b".",
        _stack_global(b"torch.nn", b"") + b".",
        _stack_global(b"torch.nnn", b"Linear") + b".",
        _stack_global(b"training", b"x y") + b".",
        _stack_global(b"torch", b"FloatStorage") + b".",
        _stack_global(b"torch.serialization", b"load") + b".",
        _stack_global(b"torch", b"load") + b".",
        _stack_global(b"builtins", b"getattr") + b".",
        _stack_global(b"functools", b"partial") + b".",
    ],
)
def test_programs_by_hand_are_refused(refused, program):
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        for protocol in range(2, 6):
            message = refused(bytes([0x80, protocol]) + program)
            assert any(reason in message for reason in ("it names", "the instruction", "outside the file"))
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)


STAND_IN = _stack_global(b"torch.nn.modules.linear", b"Linear")


@pytest.mark.parametrize(
    "program",
    [
        STAND_IN + b"}\x8c\x0c__setstate__\x8c\x01xsb.",  # state for a class rather than an object
        STAND_IN + b")R}b}b.",  # state twice
        STAND_IN + b")RK\x01b.",
        STAND_IN + b")RN}\x8c\x09__class__\x8c\x01xs\x86b.",  # slot state
        b"}}b.",
        _stack_global(b"torch._utils", b"_rebuild_parameter") + b"(K\x01K\x02K\x03tR.",
        _stack_global(b"torch._utils", b"_rebuild_parameter") + b")R.",
        _stack_global(b"torch._utils", b"_rebuild_tensor_v2") + b"(NNNNNNtR.",
        _stack_global(b"torch_utils.persistence", b"_reconstruct_persistent_obj") + b"}\x85R.",
        _stack_global(b"torch.storage", b"_load_from_bytes") + b"\x8c\x01x\x85R.",
        _stack_global(b"torch.storage", b"_load_from_bytes") + b"C\x00\x85R.",
        b"K\x01\x85R.",
        b"R.", b"\x85.", b"0.", b"e.", b"u.", b"b.", b"(.", b"N(\x85.", b"s.", b"}K\x01s.", b"h\x07.", b"\x94.",
        b"]K\x01(e.", b"}(K\x01u.", b"}]K\x01s.", b"}(K\x01\x85K\x01u.", b"}(NK\x01u.", b".", b"\xff.", b"",
    ],
)  # fmt: skip
def test_programs_that_misuse_the_machine_are_refused(refused, program):
    message = refused(b"\x80\x04" + program)
    assert any(reason in message for reason in ("cut off or damaged", "neither texts nor integers", "instruction"))


def test_what_is_inert_may_stand_beside_the_network(maker, tiny, tmp_path, marker):
    """A name that leads somewhere is still only a name; what is called by it is not called."""
    maker.play("torch.nn.modules.os", "mkdir", os.mkdir)
    inert = STAND_IN.replace(b"\x17torch.nn.modules.linear", b"\x13torch.nn.modules.os").replace(
        b"\x06Linear", b"\x05mkdir"
    )
    beside = inert + b"\x8c" + bytes([len(str(marker))]) + str(marker).encode() + b"\x85R"
    whole = maker.dumps(tiny, 3)
    assert whole.endswith(b"u.")
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(whole[:-1] + b"X\x01\x00\x00\x00x" + beside + b"s.")
    assert load_original_lego(path)[0]["window_sizes"] == (4,)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_snapshots_of_every_python_3_are_read(maker, tiny, tmp_path, marker, protocol):
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(maker.dumps(tiny, protocol))
    _, state_dict = load_original_lego(path)
    assert torch.equal(state_dict["condition.time_embed.linear_1.weight"], tiny["model.t_embedder.mlp.0.weight"])
    assert not marker.exists()


def _torch_file(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "no weights here")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"\x80\x04",
        b"GIF89a",
        b"version https://git-lfs.github.com/spec/v1\n",
        "naïve text\n".encode(),
        b"PK\x03\x04",
        _zip(),
        _torch_file({"model": torch.nn.Linear(1, 1)}),
        _torch_file(Call(os.getcwd), legacy=True),
        _torch_file(torch.zeros(2)),
        _torch_file({1: torch.zeros(2)}),
        pickle.dumps({"model": {}}),
        pickle.dumps([1, 2]),
        pickle.dumps({"ema": {"x": 1}}),
    ],
)
def test_foreign_files_are_named(refused, content):
    refused(content)
    refused(content, "weights.safetensors")
    refused(content, "weights.pt")


def test_what_a_snapshot_lacks_is_told(refused):
    for content in ({"model": {}}, [1], {"ema": {"x": 1}}, {"ema": None}):
        assert "holds no module under 'ema'" in refused(pickle.dumps(content))


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pkl", "https://example.org/LEGO.pkl"):
        with pytest.raises(ValueError, match="not a file"):
            load_original_lego(path)


# Bombs: small files that ask for much.


def test_declared_sizes_are_not_believed(refused):
    for program in (
        b"\x8e" + b"\xff" * 8,
        b"\x8e" + struct.pack("<Q", 1 << 40),
        b"B\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
    ):
        refused(b"\x80\x04" + program + b".")
    assert "text of 2000000 bytes" in refused(b"\x80\x04X" + struct.pack("<I", 2_000_000) + b"x" * 2_000_000 + b".")


def test_tensors_larger_than_their_storage_are_refused(maker, tiny, refused):
    good, shape = maker.dumps(tiny), b"K\x0cK\x04\x86"  # (12, 4)
    assert shape in good
    assert "larger than its storage" in refused(good.replace(shape, b"K\xffK\x04\x86", 1))
    assert "not contiguous" in refused(good.replace(shape, b"K\x04K\x0c\x86", 1))
    assert "impossible" in refused(good.replace(shape, b"K\x00K\x04\x86", 1))
    tensors = tiny | {"model.model.0.x_embedder.proj.weight": torch.zeros(2, 2, 5, 4).permute(3, 2, 1, 0)}
    assert "not contiguous" in refused(maker.dumps(tensors))


class StoragePickler(pickle.Pickler):
    """Writes what lies in the bytes of a storage; a tuple that begins with "storage" refers to the numbers."""

    def persistent_id(self, obj):
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


IDENTITY = ("storage", torch.FloatStorage, "0", "cpu", 2, None)
SYSTEM = {"protocol_version": pickles.LEGACY_VERSION, "little_endian": True, "type_sizes": {"int": 4}}


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "holds no module"),  # nothing wrong with the storage
        ({"magic": 1}, "legacy format"),
        ({"version": 1002}, "legacy format"),
        ({"system": SYSTEM | {"little_endian": False}}, "little-endian"),
        ({"system": []}, "little-endian"),
        ({"storage": 3}, "exactly one storage"),
        ({"storage": [IDENTITY]}, "exactly one storage"),
        ({"keys": ["1"]}, "exactly one storage"),
        ({"keys": ["0", "1"]}, "exactly one storage"),
        ({"storage": IDENTITY[:5]}, "makes no sense"),
        ({"storage": ("storage", "FloatStorage", *IDENTITY[2:])}, "makes no sense"),
        ({"storage": ("storage", ["FloatStorage"], *IDENTITY[2:])}, "makes no sense"),
        ({"storage": (*IDENTITY[:2], 0, *IDENTITY[3:]), "keys": [0]}, "makes no sense"),
        ({"storage": (*IDENTITY[:4], 2.0, None)}, "makes no sense"),
        ({"storage": ("storage", os.getcwd, *IDENTITY[2:])}, "it names .*getcwd"),
        ({"storage": ("storage", torch.nn.Linear, *IDENTITY[2:])}, "it names .*Linear"),
        ({"count": 3}, "as many numbers as it declares"),
        ({"count": -2}, "as many numbers as it declares"),
        ({"numbers": bytes(7)}, "as many numbers as it declares"),
        ({"numbers": bytes(9)}, "as many numbers as it declares"),
        ({"numbers": b""}, "as many numbers as it declares"),
    ],
)
def test_damaged_storages_are_told_apart(refused, change, message):
    parts = {"magic": pickles.LEGACY_MAGIC, "version": pickles.LEGACY_VERSION, "system": SYSTEM, "storage": IDENTITY}
    parts |= {"keys": ["0"], "count": 2, "numbers": bytes(8)} | change
    file = io.BytesIO()
    for name in ("magic", "version", "system", "storage", "keys"):
        StoragePickler(file, protocol=2).dump(parts[name])
    content = file.getvalue() + struct.pack("<q", parts["count"]) + parts["numbers"]
    told = refused(pickle.dumps(Call(torch.storage._load_from_bytes, content)))
    assert re.search(message, told)


def test_one_storage_cannot_fill_the_memory(maker, refused):
    storage = Call(torch.storage._load_from_bytes, _torch_file(torch.zeros(100, 100)._typed_storage(), legacy=True))
    rebuild, shape = torch._utils._rebuild_tensor_v2, ((100, 100), (100, 1))
    parameters = {f"p{i}": Call(rebuild, storage, 0, *shape, False, OrderedDict()) for i in range(1000)}
    content = pickle.dumps({"ema": maker.persistent("Net", {"_parameters": parameters})})
    assert len(content) < 100_000
    assert "claim more bytes" in refused(content)


def test_endless_programs_are_stopped(refused, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    assert "more than 1,000 instructions" in refused(b"\x80\x04" + b"]" * 2000 + b".")


@pytest.mark.parametrize("nest", [b"]" * 60_000 + b"a" * 59_999, b")" + b"\x85" * 100_000])
def test_deep_nesting_is_survived(refused, nest):
    refused(b"\x80\x04" + nest + b".")
    refused(b"\x80\x04}" + nest + b"K\x01s.")  # as a key, whose hash would recurse
    refused(b"\x80\x04" + _stack_global(b"torch.nn", b"x") + b")R" + nest + b"b.")


def test_module_trees_that_are_no_trees_are_refused(maker, refused):
    module = torch.nn.Identity()
    module.register_module("again", module)
    assert "more than once" in refused(pickle.dumps({"ema": module}))
    leaf = torch.nn.Identity()
    for _ in range(25):  # two ways to each child: 2^25 paths
        leaf, child = torch.nn.Identity(), leaf
        leaf._modules.update(left=child, right=child)
    assert "more than once" in refused(pickle.dumps({"ema": leaf}))
    for depth in range(40):
        leaf, child = torch.nn.Identity(), torch.nn.Identity() if depth == 0 else leaf
        leaf._modules.update(inner=child)
    assert "too deeply" in refused(pickle.dumps({"ema": leaf}))
    long = torch.nn.Identity()
    long._modules["x" * 10_000] = torch.nn.Identity()
    assert "at most 64 letters" in refused(pickle.dumps({"ema": long}))


# Fuzz: whatever happens to a valid snapshot, it is read or refused.


@pytest.fixture(scope="module")
def survives(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "snapshot.pkl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        before = set(sys.modules)
        try:
            load_original_lego(path, num_attention_heads=2)
        except ValueError as error:
            assert str(path) in str(error)
        assert not _strangers(before)

    return read


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture
def whole(maker, tiny) -> bytes:
    """The bytes of a valid snapshot, made once for all examples of a test."""
    return maker.dumps(tiny)


@FUZZ
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_snapshots_are_refused(whole, refused, share):
    refused(whole[: int(share * len(whole))])


@FUZZ
@given(data=st.data())
def test_flipped_bytes_never_surprise(whole, survives, data):
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content))


@FUZZ
@given(data=st.data())
def test_moved_pieces_never_surprise(whole, survives, data):
    place, start, length = (data.draw(st.integers(0, len(whole))) for _ in range(3))
    survives(whole[:place] + whole[start : start + length % 200] + whole[place + data.draw(st.integers(0, 50)) :])


@FUZZ
@given(
    st.lists(
        st.sampled_from([*pickles._INSTRUCTIONS, STAND_IN, b"K\x01", b"\x8c\x01x", b"N", b"C\x02ab"]), max_size=40
    )
)
def test_random_programs_never_surprise(survives, program):
    survives(b"\x80\x04" + b"".join(program) + b".")


def test_what_modules_share_is_not_walked_again_and_again(maker, refused):
    """A dictionary of many entries, recalled for each of many modules: a small file, and a walk of hours."""
    shared = {f"p{number}": None for number in range(2000)}
    modules = {f"m{number}": maker.persistent("Net", {"_parameters": shared}) for number in range(2000)}
    content = pickle.dumps({"ema": maker.persistent("Net", {"_modules": modules})}, protocol=4)
    assert len(content) < 400_000
    assert "there more than once" in refused(content)


def test_a_state_shared_by_modules_is_refused(maker, refused):
    state = {"_parameters": {}, "text": "x" * 1000}
    modules = {f"m{number}": maker.persistent("Net", state) for number in range(10)}
    assert "there more than once" in refused(pickle.dumps({"ema": maker.persistent("Net", {"_modules": modules})}))


def torch_bytes(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_compressed_parts_are_refused(refused):
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(1_000_000)}))) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert len(packed.getvalue()) < 20_000
    assert "claim more bytes than it has" in refused(packed.getvalue(), "snapshot.pt")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(1 << 30), torch.zeros(8, 8).as_strided((1000, 1000), (0, 0))]
)
def test_tensors_over_one_another_are_refused(refused, tensor):
    assert "claim more bytes than it has" in refused(torch_bytes({"x_embedder.proj.weight": tensor}), "snapshot.pt")
