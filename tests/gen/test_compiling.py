import os
import warnings

import pytest
import torch

from brickwork import compat
from brickwork.gen import compiling


def compiled_blocks(network) -> int:
    return sum(compat.compiled_call(module) is not None for module in network.modules())


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv(compiling.CACHE, str(tmp_path / "compiled"))
    yield
    torch._dynamo.reset()


@pytest.mark.skipif(compiling._compiler() is None, reason="needs a C++ compiler")
def test_compiled_equals_eager_for_any_batch_and_size(lego):
    """One block, so that little is compiled: for one shape, then for any; and that is kept on disk."""
    network = lego("one brick")
    network.bricks[0].blocks = network.bricks[0].blocks[:1]
    shapes = ((2, 16, 32), (3, 16, 48), (4, 32, 32))  # one window alone would have a graph of its own
    with torch.no_grad():
        given = [(torch.randn(batch, 3, height, width), torch.zeros(batch)) for batch, height, width in shapes]
        expected = [network(*inputs).sample for inputs in given]
        network.compile_repeated_blocks()
        assert compiled_blocks(network) == 1
        found = [network(*inputs).sample for inputs in given[:2]]
        with torch.compiler.set_stance("fail_on_recompile"):
            found += [network(*inputs).sample for inputs in (given[2], given[0])]
    for ours, wanted in zip(found, [*expected, expected[0]], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert any(compiling.cache_folder().rglob("*.so"))


def test_without_a_compiler_eager_goes_on(lego, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    network = lego()
    with pytest.warns(UserWarning, match="no C.. compiler; install g..") as told:
        assert not compiling.compile_blocks(network)
    assert len(told) == 1 and "\n" not in str(told[0].message) and not compiled_blocks(network)


def test_a_cache_that_cannot_be_written(lego, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(compiling.CACHE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(compiling, "_compiler", lambda: "g++")
    network = lego()
    with pytest.warns(UserWarning, match="cannot be written; name a folder"):
        assert not compiling.compile_blocks(network, training=True)
    assert not compiled_blocks(network)


def test_what_repeats_no_blocks_says_so():
    assert "Linear" in compiling.why_not(torch.nn.Linear(1, 1))


def test_the_cache_is_the_users_unless_told(monkeypatch, tmp_path, lego):
    monkeypatch.delenv(compiling.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "_compiler", lambda: "g++")
    assert compiling.cache_folder() == tmp_path / "brickwork" / "compiled"
    try:
        assert compiling.why_not(lego()) is None
        assert os.environ[compiling.CACHE] == str(tmp_path / "brickwork" / "compiled")
    finally:
        del os.environ[compiling.CACHE]


def test_a_backend_of_ones_own_is_diffusers_way(lego):
    network = lego()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.compile_repeated_blocks(backend="eager")
    assert compiled_blocks(network) == 4
