"""What a person types for a model."""

import socket
import time

import pytest
from huggingface_hub import constants

from brickwork import hub
from brickwork.errors import MissingFile
from brickwork.pipelines.stable_diffusion import load_pipeline


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "runs" / "tiny-lego").mkdir(parents=True)
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def no_network(*arguments, **options):
        raise AssertionError("the network is touched")

    monkeypatch.setattr(socket, "create_connection", no_network)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lego-avatars-46", "did you mean 'lego-avatars-64'"),
        ("my-modle", "did you mean 'my-model'"),
        ("runs/tiny-leggo", "did you mean 'runs/tiny-lego'"),
        ("runs/other", "the folder 'runs' has nothing of that name"),
        ("./nothing", "no name on the hub looks like that; the weights that ship are"),
        ("a/b/c", "no name on the hub looks like that"),
    ],
)
def test_slips_are_answered_before_any_network(place, name, message):
    with pytest.raises(MissingFile, match=message) as caught:
        hub.check_name(name, "model")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(f"`model` is {name!r}")


def test_folders_pass(place):
    assert hub.check_name("runs/tiny-lego", "model") is False
    assert hub.check_name(place / "my-model", "model") is False


def test_slips_in_data_sets_are_answered_before_any_network(place, monkeypatch):
    (place / "pictures").mkdir()
    (place / "faces.parquet").touch()
    for name, near in {
        "picturse": "pictures",
        "runs/tiny-legos": "runs/tiny-lego",
        "face.parquet": "faces.parquet",
    }.items():
        with pytest.raises(MissingFile, match=f"`data.source` is '{name}', .* did you mean '{near}'"):
            hub.check_data_set(name, "data.source")
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    with pytest.raises(MissingFile, match="the Hugging Face Hub cannot be reached"):
        hub.check_data_set("someone/pictures", "data.source")
    (place / "cache" / "datasets--someone--pictures").mkdir(parents=True)
    hub.check_data_set("someone/pictures", "data.source")


def test_a_base_to_train_on_is_answered_likewise(place):
    for name, message in {
        "lego-avatars-46": "did you mean",
        "runs/tiny-leggo": "did you mean 'runs/tiny-lego'",
    }.items():
        with pytest.raises(MissingFile, match=f"`model.base` is '{name}'.*{message}"):
            load_pipeline(name)


def test_without_a_network_the_answer_comes_at_once(place, monkeypatch):
    def down(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", down)
    hub._connects.cache_clear()
    began = time.monotonic()
    with pytest.raises(MissingFile, match="the Hugging Face Hub cannot be reached"):
        hub.check_name("someone/something", "model")
    assert time.monotonic() - began < 2
    (place / "cache" / "models--someone--something").mkdir(parents=True)
    assert hub.check_name("someone/something", "model") is True  # from the cache alone
    hub._connects.cache_clear()


def test_with_a_network_the_hub_is_asked(place, monkeypatch):
    class Connection:
        def close(self):
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *arguments, **options: Connection())
    hub._connects.cache_clear()
    assert hub.check_name("someone/something", "model") is False
    hub._connects.cache_clear()
