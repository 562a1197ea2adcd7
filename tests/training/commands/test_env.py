"""`brickwork env` and `brickwork new-config`."""

import platform
from pathlib import Path

import pytest
import yaml

from brickwork.cli import main
from brickwork.training.commands import env
from brickwork.training.config.config import DEFAULTS, load_config


def test_env_tells_what_a_bug_report_needs(capsys):
    assert main(["env"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) >= {"python", "torch", "diffusers", "system", "processor", "features", "memory", "GPUs"}
    assert "native" in lines["attention"] and "_native_math" in lines["attention"]
    assert "times as fast as float32" in lines["bf16 on the processor"]
    assert lines["mixed_precision: auto"].strip() in ("no", "bf16")


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_env_without_what_linux_tells(monkeypatch, error):
    read = Path.read_text

    def without(path, *arguments, **options):
        if path == Path("/proc/cpuinfo"):
            raise error
        return read(path, *arguments, **options)

    def missing(*arguments):
        raise OSError

    monkeypatch.setattr("pathlib.Path.read_text", without)
    monkeypatch.setattr("os.sysconf", missing)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr(env, "attention_backends", dict)
    facts = env.environment()
    assert facts["processor"].startswith(f"{platform.machine()}, ")
    assert facts["features"] == facts["memory"] == "unknown"


@pytest.mark.parametrize("name", [None, "tiny-u-emo", "lego-l-pg-64", "lego-avatars-64"])
def test_a_new_configuration_is_the_whole_of_it_with_comments(name, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    words = ["new-config", *([name] if name else []), "-o", str(path), "data.source=my pictures", "run.seed=3"]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"train with it: brickwork train --config {path}\n")
    values = yaml.safe_load(path.read_text())
    assert (values["data"]["source"], values["run"]["seed"]) == ("my pictures", 3)
    assert values["run"]["mixed_precision"] == "auto"
    assert set(values) == set(yaml.safe_load(DEFAULTS.read_text()))
    config = load_config(path)
    assert config.run.total_images == values["run"]["total_images"]
    assert path.read_text().count("  # ") > 30
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    path.write_text("run: {seed: 1}")
    assert main([*words, "--overwrite"]) == 2
    assert path.read_text() == "run: {seed: 1}"


def test_a_new_configuration_without_pictures_says_where_they_are_named(tmp_path, capsys):
    assert main(["new-config", "-o", str(tmp_path / "run.yaml")]) == 0
    assert capsys.readouterr().out.endswith("run.yaml data.source=my-pictures\n")


def test_mistakes_in_new_configurations_are_named(capsys):
    for words, message in {
        ("tiny-lgo",): "did you mean 'tiny-lego'",
        ("tiny-lego", "tiny-dit"): "name one preset",
        ("run.sed=1",): "did you mean `seed`",
    }.items():
        assert main(["new-config", *words]) == 2
        assert message in capsys.readouterr().err
