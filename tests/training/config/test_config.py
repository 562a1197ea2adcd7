"""Configurations: one file over the defaults, strict keys, and what may change when a run goes on."""

import json
import time
from importlib import metadata

import pytest
import torch
import yaml

from brickwork.training.config import precision
from brickwork.training.config.config import DEFAULTS, TrainConfig, changed_keys, given_values, load_config
from brickwork.training.config.library import CONFIGS


def test_defaults_name_every_field_and_nothing_else():
    values = yaml.safe_load(DEFAULTS.read_text())
    assert set(values) == set(TrainConfig.model_fields)
    for name, field in TrainConfig.model_fields.items():
        if name != "objectives":
            assert set(values[name]) == set(field.annotation.model_fields)


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
        ("run=3", "`run` is 3; give a mapping"),
        ("data.size=0", "`data.size` is 0"),
        ("data.held_out=1.0", "`data.held_out` is 1.0"),
        ("run.mixed_precision=fp8", "choose one of"),
        ("run.batch_size=7 run.gradient_accumulation_steps=2", "multiple of run.gradient_accumulation_steps = 2"),
        ("optimizer.schedule=cosin", "did you mean 'cosine'"),
        ("optimizer.schedule=inverse_sqrt", "decay_images"),
        ("objective.label_dropout=1.5", "`objective.label_dropout` is 1.5"),
        ("samples.steps=0", "`samples.steps` is 0"),
        ("total_images=5", "did you mean `run.total_images`"),
        ("data.total_images=5", "did you mean `run.total_images`"),
        ("model.config=3", "`model.config` is 3; give a mapping"),
        ("optimizer.betas=[1,0.5]", r"`optimizer.betas` is \[1, 0.5\]; give two numbers below 1"),
        ("optimizer.learning_rate=.inf", "`optimizer.learning_rate` is inf"),
        ("objectives=[3]", r"`objectives` is \[3\]; give a list of mappings"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, override.split())


def test_no_means_no():
    assert load_config(None, ["run.mixed_precision=no"]).run.mixed_precision == "no"


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml', which is not there"):
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
    del values["optimizer"]["schedule"], values["samples"], values["objectives"], values["run"]["mixed_precision"]
    assert changed_keys(yaml.safe_dump(values), load_config()) == {}
    assert list(changed_keys(yaml.safe_dump(values), load_config(None, ["optimizer.schedule=cosine"]))) == [
        "optimizer.schedule"
    ]


def test_further_objectives_are_a_list_of_names_with_weights():
    text = "objectives=[{type: features, layers: [1, 2]}, {type: teacher, weight: 5e-1}]"
    features, teacher = load_config(None, [text]).objectives
    assert features == {"type": "features", "weight": 1.0, "layers": [1, 2]}
    assert teacher == {"type": "teacher", "weight": 0.5}
    assert len(load_config(None, ["objectives=[{type: a}, {type: a, name: b}]"]).objectives) == 2
    saved = load_config(None, [text]).to_yaml()
    assert changed_keys(saved, load_config(None, [text])) == {}
    assert list(changed_keys(saved, load_config())) == ["objectives"]
    for wrong, message in {
        "[{weight: 1}]": r"`objectives\[0\]` is .*name its `type`",
        "[{type: a}, {type: b, weight: much}]": r"`objectives\[1\]\.weight` is 'much'",
        "[{type: a}, {type: a}]": "'a' is there twice",
        "a": "`objectives` is 'a'; give a list of mappings",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_config(None, [f"objectives={wrong}"])


def test_the_configuration_of_an_older_run_names_its_version(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {warp: 9}")
    (tmp_path / "starts.jsonl").write_text('{"versions": {"brickwork": "0.0.9"}}\n')
    with pytest.raises(ValueError, match=r"Unknown key `run.warp`.*begun with brickwork 0\.0\.9; this is \d"):
        load_config(tmp_path / "config.yaml")
    same = json.dumps({"versions": {"brickwork": metadata.version("brickwork")}})
    for text in ("{torn", same):
        (tmp_path / "starts.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"model.wrap.\?$"):
            load_config(tmp_path / "config.yaml")


def test_configurations_that_ship_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lego_emoji_64", "lego-emoji-64", "lego_emoji_64.yaml", "training/configs/lego_emoji_64.yaml"):
        assert load_config(name).run.output_dir == "runs/lego-emoji-64"
    (tmp_path / "lego_emoji_64.yaml").write_text("run: {output_dir: mine}")
    assert load_config("lego_emoji_64.yaml").run.output_dir == "mine"
    for name, message in {
        "maxvit_gna": "did you mean 'maxvit_gan'",
        "lego_emoij_64.yaml": "did you mean 'lego_emoji_64.yaml'",
        "xyz": "name a file, or one of those that ship: .*avatars_base, .*avatars_resadapter, ",
        "elsewhere/maxvit_gan.yaml": "is not there",
        str(tmp_path): "is a folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_config(name)


def test_a_file_goes_over_another_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("over: lego_emoji_64\nrun: {output_dir: mine}\nmodel: {config: {x: 1}}")
    top = tmp_path / "top.yaml"
    top.write_text(f"over: {tmp_path / 'mine.yaml'}\ndata: {{source: pics}}\nmodel: {{config: {{y: 2}}}}")
    config, below = load_config(top, ["run.seed=3"]), load_config("lego_emoji_64")
    assert (config.run.output_dir, config.run.seed, config.data.crop_share) == ("mine", 3, 0.3)
    assert config.model.config == {"x": 1, "y": 2} and config.model.init_from == below.model.init_from
    assert (config.data.source, config.data.classes) == ("pics", None)  # other data than the set below
    given = given_values(["run.seed=3"], top)
    assert given["run.seed"] == 3 and given["model.init_from"] == below.model.init_from and "over" not in given
    for over, message in {
        str(tmp_path / "top.yaml"): "`over` is .*, which lies over this file itself",
        "lego_emoij_64": "`over` is 'lego_emoij_64'.*did you mean 'lego_emoji_64'",
        "[1]": "`over` is '.1.', which is not there",
    }.items():
        (tmp_path / "mine.yaml").write_text(f"over: {over}")
        with pytest.raises(ValueError, match=message):
            load_config(top)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_nothing_that_ships_holds_what_belongs_to_one_data_set(path):
    data = yaml.safe_load(path.read_text()).get("data", {})
    if path.parent.name != "data_sets" and not path.stem.endswith("defaults"):
        assert not set(data) & {"classes", "group_column"}
        assert data.get("source") in (None, "", "data/my-pictures")
        assert "set" not in data or load_config(None, [f"data.set={data['set']}"]).data.source


def test_other_pictures_do_not_take_the_classes_of_a_data_set(tmp_path):
    config = load_config("lego_emoji_64")
    assert config.data.classes == ["Smileys & Emotion", "Symbols", "Flags"]
    assert (config.data.group_column, config.data.size) == ("codepoints", 64)
    assert load_config("lego_emoji_64", ["data.source=data/emoji/train.parquet"]).data == config.data
    other = load_config("lego_emoji_64", ["data.source=pics"]).data
    assert (other.source, other.classes, other.group_column, other.crop_share) == ("pics", None, None, 0.3)
    moved = load_config("lego_emoji_64", ["data.set=emoji_three_groups", "data.source=moved.parquet"]).data
    assert (moved.source, moved.classes) == ("moved.parquet", config.data.classes)
    assert load_config("lego_emoji_64", ["data.classes=[Flags]"]).data.classes == ["Flags"]
    assert load_config("lego_emoji_64", ["data.set=null"]).data.source == ""
    (tmp_path / "mine.yaml").write_text("source: here\ngroup_column: artist")
    assert load_config(None, [f"data.set={tmp_path / 'mine.yaml'}"]).data.group_column == "artist"
    (tmp_path / "mine.yaml").write_text("source: here\ngroup: artist")
    for name, message in {
        f"{tmp_path / 'mine.yaml'}": "Unknown key `data.group`",
        "smilies": "`data.set` is 'smilies'.*did you mean 'smileys'",
        "3": "`data.set` is 3; name a data set",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_config(None, [f"data.set={name}"])


def test_precision_is_that_of_the_device_until_the_run_has_begun(tmp_path, monkeypatch):
    folder = f"run.output_dir={tmp_path / 'run'}"
    monkeypatch.setattr(precision, "_takes_gpu", lambda: False)
    for units, speed, chosen in ((False, 2.0, "no"), (True, 1.05, "no"), (True, 1.2, "bf16")):
        monkeypatch.setattr(precision, "device_has_bf16", lambda units=units: units)
        monkeypatch.setattr(precision, "bf16_speed", lambda speed=speed: speed)
        config = load_config(None, [folder])
        assert config.run.mixed_precision == chosen
        assert "mixed_precision: auto" not in config.to_yaml()
    assert load_config(None, [folder, "run.mixed_precision=no"]).run.mixed_precision == "no"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(load_config(None, ["run.mixed_precision=no"]).to_yaml())
    assert load_config(None, [folder]).run.mixed_precision == "no"  # on another machine it goes on as it began
    (tmp_path / "run" / "config.yaml").write_text("run: [torn")
    assert load_config(None, [folder]).run.mixed_precision == "bf16"


def test_a_gpu_and_several_processes_choose_without_measuring(monkeypatch):
    def measured():
        raise AssertionError("measured")

    monkeypatch.setattr(precision, "device_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "bf16_speed", measured)
    monkeypatch.setattr(precision, "_takes_gpu", lambda: True)
    assert precision.fastest_precision() == "bf16"
    monkeypatch.setattr(precision, "_takes_gpu", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert precision.fastest_precision() == "no"
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(AssertionError, match="measured"):
        precision.fastest_precision()


def test_the_speed_of_bf16_is_measured_once_and_draws_nothing():
    precision.bf16_speed.cache_clear()
    state = torch.random.get_rng_state()
    speed = precision.bf16_speed()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert speed == precision.bf16_speed()


def test_bf16_without_units_is_warned_of_with_a_figure(monkeypatch):
    monkeypatch.setattr(precision, "device_has_bf16", lambda: False)
    monkeypatch.setattr(precision, "bf16_speed", lambda: 0.0123)
    assert "0.012 times as fast" in precision.precision_warning("bf16", on_cpu=True)
    assert precision.precision_warning("bf16", on_cpu=False) is None
    assert precision.precision_warning("no", on_cpu=True) is None
    monkeypatch.undo()
    assert 0 < precision.bf16_speed() < 100
    monkeypatch.setattr(precision, "processor_features", lambda: ["avx512_bf16"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert precision.device_has_bf16()


def test_no_small_file_makes_a_long_error_or_much_work(tmp_path):
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    merges = "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))
    chain = "\n".join(f"a{n}: &a{n} {'[' * 30}*a{n - 1}{']' * 30}" for n in range(1, 12))
    for text, message in {
        "a0: &a0 lol\n" + laughs: "more than 100,000 values",
        "a0: &a0 {x: 1}\n" + merges: "more than 100,000 values",
        "a0: &a0 1\n" + chain: "nests deeper than 40 levels",
        "run: " + "[" * 500 + "]" * 500: "nests deeper than 40 levels",
        "run: " + "[" * 1_000: "nests deeper than 40 levels",
        "run: &r {seed: *r}": "line 1 to what it is part of",
        "run: {seed: " + "x" * 20_000 + "}": "`run.seed` is 'xxx",
        "run: {seed: [" + "1, " * 3_000 + "]}": r"`run.seed` is \[1, 1",
        "x" * 300_000: "at most 262,144",
        "run: {seed: 1}\nrun: {seed: 2}": "has 'run' twice",
        "run: {seed: 1, seed: 2}": "has 'seed' twice",
        "run: {output_dir: 2024-99-99}": "has a value that is none",
        "run: {seed: " + "9" * 5000 + "}": "has a value that is none",
        "run: !!python/name:os.system x": "has a value that is none: could not determine",
        "run: \x00": "is not YAML",
        "? [1, 2]\n: 3": "unhashable",
    }.items():
        (tmp_path / "run.yaml").write_text(text)
        start = time.perf_counter()
        with pytest.raises(ValueError, match=message) as caught:
            load_config(tmp_path / "run.yaml")
        assert len(str(caught.value)) < 1000
        assert time.perf_counter() - start < 3, text[:50]
    for override in (".".join("a" * 5000) + "=1", "run.seed=" + "[" * 5000, "model.config." * 2000 + "=1"):
        with pytest.raises(ValueError) as caught:
            load_config(None, [override])
        assert len(str(caught.value)) < 1000
