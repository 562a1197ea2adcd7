"""Damaged and hostile adapter files: loaded or refused with a `ValueError`, and the network is as it was.

`BRICKWORK_LONG=20000 pytest tests/adapters/test_fuzz.py -s` tries as many; without it, 300.
"""

import json
import os
import random
import struct
import warnings
from collections import Counter

import pytest
import torch

from brickwork import load_adapter
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.merge import merge_resadapter

COUNT = int(os.environ.get("BRICKWORK_LONG") or 300)
ODD = [None, True, -1, 0, 1.5, 1e308, 10**40, "", "x" * 300, [], [[[]]], {}, {"r": {}}, "NaN", "\ud800", "F8_E4M3"]


def split(data):
    """Header and tensors of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header, tensors):
    text = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + tensors


def any_byte(dice, data):
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 4, 40))):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def header_byte(dice, data):
    length = 8 + struct.unpack("<Q", data[:8])[0]
    return any_byte(dice, data[:length]) + data[length:]


def cut(dice, data):
    return data[: dice.randrange(len(data))] + bytes(dice.choice((0, 0, 9)))


def entry(dice, data):
    """Type, shape, place or name of a tensor."""
    header, tensors = split(data)
    name = dice.choice([key for key in header if key != "__metadata__"])
    what = dice.choice(("dtype", "shape", "data_offsets", "name", "gone", "twice"))
    if what == "name":
        letters = list(name)
        letters[dice.randrange(len(letters))] = dice.choice("._0aZ\x00é")
        header["".join(letters)] = header.pop(name)
    elif what == "gone":
        del header[name]
    elif what == "twice":
        header[f"unet.{name}"] = header[name]
    elif what == "dtype":
        header[name]["dtype"] = dice.choice(("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", 7))
    else:
        values = header[name][what]
        if values and dice.random() < 0.7:
            values[dice.randrange(len(values))] = dice.choice((0, 1, -1, 2**31, 2**63, 2**64, 9, "3"))
        else:
            header[name][what] = dice.choice(ODD)
    return join(header, tensors)


def metadata(dice, data):
    """A value in the metadata, or deep in its JSON."""
    header, tensors = split(data)
    notes = header.setdefault("__metadata__", {})
    key = dice.choice(
        ["brickwork.adapter", "brickwork.config", "brickwork.resadapter", "lora_adapter_metadata", *list(notes)]
    )
    try:
        value = json.loads(notes.get(key, "{}"))
    except ValueError:
        value = {}
    if isinstance(value, dict) and dice.random() < 0.8:
        known = [*value, "family", "alphas", "range", "norm_types", "unet.r", "unet.alpha_pattern", "lora_alpha", "r"]
        value[dice.choice(known)] = dice.choice(ODD)
        if dice.random() < 0.3:
            value["alphas"] = {"down_blocks.0.downsamplers.0.conv": [dice.choice(ODD), dice.choice(("float32", 3))]}
        notes[key] = json.dumps(value)
    else:
        notes[key] = dice.choice((str(dice.choice(ODD)), "[" * 3000, "{", 3))
    return join(header, tensors)


def values(dice, data):
    """Some of a tensor's values: NaN, infinite, huge."""
    header, tensors = split(data)
    tensors = bytearray(tensors)
    for _ in range(dice.choice((1, 3))):
        place = dice.randrange(0, len(tensors) - 8, 2)
        tensors[place : place + 8] = dice.choice((b"\xff" * 8, struct.pack("<d", 1e300), struct.pack("<2f", 3e38, 0)))
    return join(header, bytes(tensors))


MUTATIONS = (any_byte, header_byte, cut, entry, entry, metadata, metadata, values)


@pytest.fixture(scope="module")
def material(helpers, tmp_path_factory):
    """A UNet and the files of an adapter that fits it in every form."""
    unet, folder = helpers.make_unet("mini"), tmp_path_factory.mktemp("fuzz")
    src = helpers.write_official(folder / "official", *helpers.random_adapter_tensors(unet, rank=1))
    one = {"to": "comfyui", "base_model": unet}
    convert_resadapter(src, folder / "one.safetensors", **one)
    convert_resadapter(src, folder / "diff.safetensors", norm_keys="diff", **one)
    convert_resadapter(src, folder / "peft.safetensors", to="diffusers")
    unet.save_pretrained(folder / "base")
    return unet, folder, [src, folder / "one.safetensors", folder / "diff.safetensors", folder / "peft.safetensors"]


def test_files_that_are_damaged(material, tmp_path):
    unet, folder, sources = material
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    attributes, classes = set(vars(unet)), [type(module) for module in unet.modules()]
    counts, dice = Counter(), random.Random(0)
    for number in range(COUNT):
        source = dice.choice(sources)
        victim = dice.choice(sorted(source.glob("*"))) if source.is_dir() else source
        mutation, whole = dice.choice(MUTATIONS), victim.read_bytes()
        try:
            victim.write_bytes(mutation(dice, whole))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_adapter(unet, source).unload()
                if number % 10 == 0:
                    merge_resadapter(folder / "base", source, tmp_path / f"merged-{number}")
            counts["loaded"] += 1
        except ValueError as error:
            counts["refused"] += 1
            assert len(str(error)) < 2000
        except Exception as error:
            raise AssertionError(f"input {number}, {mutation.__name__} of {victim.name}: {error!r}") from error
        finally:
            victim.write_bytes(whole)
        assert set(vars(unet)) == attributes, f"input {number}"
    assert [type(module) for module in unet.modules()] == classes
    after = unet.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    print(f"{COUNT} damaged adapter files: {dict(counts)}")
    assert counts["refused"] > COUNT / 3
