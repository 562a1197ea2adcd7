"""Configurations: one file over the defaults, strict keys, and what may change when a run goes on."""

import dataclasses

import pytest
import yaml

from brickwork.training.config.config import DEFAULTS, TrainConfig, changed_keys, load_config


def test_defaults_name_every_field_and_nothing_else():
    values = yaml.safe_load(DEFAULTS.read_text())
    sections = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    assert set(values) == set(sections)
    for name, cls in sections.items():
        assert set(values[name]) == {field.name for field in dataclasses.fields(cls)}


def test_file_over_defaults_and_overrides_over_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {size: 32}\nrun: {seed: 1, batch_size: 4}")
    config = load_config(path, ["run.seed=7", "model.config.mlp_ratio=2.0", "optimizer.learning_rate=1e-3"])
    assert (config.data.size, config.run.seed, config.run.batch_size) == (32, 7, 4)
    assert config.model.config == {"mlp_ratio": 2.0}
    assert config.data.held_out == yaml.safe_load(DEFAULTS.read_text())["data"]["held_out"]


def test_a_number_that_yaml_takes_for_text_is_a_number():
    assert load_config(None, ["optimizer.learning_rate=1e-3"]).optimizer.learning_rate == 0.001
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate` is 'fast'"):
        load_config(None, ["optimizer.learning_rate=fast"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.batchsize=8", "Unknown key `run.batchsize`.*did you mean `batch_size`"),
        ("optimiser.learning_rate=1", "Unknown key `optimiser`.*did you mean `optimizer`"),
        ("run.zzz=8", "Unknown key `run.zzz`.*known: output_dir"),
        ("run.seed=one", "`run.seed` is 'one'"),
        ("run.seed=true", "`run.seed` is True"),
        ("run.compile=1", "`run.compile` is 1"),
        ("run.seed", "no `section.key=value`"),
        ("run.seed=[1", "not YAML"),
        ("run=3", "`run.` is 3; give a mapping"),
        ("data.size=0", "`data.size` is 0"),
        ("data.held_out=1.0", "`data.held_out` is 1.0"),
        ("run.mixed_precision=fp8", "choose one of"),
        ("run.batch_size=7 run.gradient_accumulation_steps=2", "multiple of run.gradient_accumulation_steps = 2"),
        ("optimizer.schedule=cosin", "choose one of"),
        ("optimizer.schedule=inverse_sqrt", "decay_images"),
        ("objective.label_dropout=1.5", "`objective.label_dropout` is 1.5"),
        ("samples.steps=0", "`samples.steps` is 0"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, override.split())


def test_no_means_no():
    assert load_config(None, ["run.mixed_precision=no"]).run.mixed_precision == "no"


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(tmp_path / "broken.yaml")


def test_what_may_change_when_a_run_goes_on():
    saved = load_config(None, ["run.seed=1"]).to_yaml()
    free = ["run.total_images=5", "data.num_workers=3", "run.log_images=7", "run.compile=true", "samples.count=2"]
    assert changed_keys(saved, load_config(None, ["run.seed=1", *free])) == {}
    changed = changed_keys(saved, load_config(None, ["run.seed=2", "run.batch_size=32", "model.config.mlp_ratio=2.0"]))
    assert changed == {
        "run.seed": (1, 2),
        "run.batch_size": (64, 32),
        "model.config": ({}, {"mlp_ratio": 2.0}),
    }


def test_the_length_of_a_cosine_course_may_not_change():
    saved = load_config(None, ["optimizer.schedule=cosine"]).to_yaml()
    longer = load_config(None, ["optimizer.schedule=cosine", "run.total_images=5"])
    assert list(changed_keys(saved, longer)) == ["run.total_images"]


def test_a_key_that_an_older_run_did_not_know_had_its_default():
    values = yaml.safe_load(load_config().to_yaml())
    del values["optimizer"]["schedule"], values["samples"]
    assert changed_keys(yaml.safe_dump(values), load_config()) == {}
    assert list(changed_keys(yaml.safe_dump(values), load_config(None, ["optimizer.schedule=cosine"]))) == [
        "optimizer.schedule"
    ]
