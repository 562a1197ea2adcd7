"""From pictures to a stored result and a comparison, through the functions and the command."""

import argparse
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from brickwork.eval.commands import evaluate
from brickwork.eval.extractors.protocols import PROTOCOLS
from brickwork.eval.metrics.calculate import calculate, memorisation, write_pictures
from brickwork.eval.metrics.distances import feature_statistics, frechet_distance
from brickwork.eval.metrics.feature_sets import extract_features
from brickwork.eval.metrics.reference import Reference, make_reference
from brickwork.eval.metrics.registry import MetricSettings
from brickwork.eval.report.results import compare, comparison_table, read_result
from brickwork.eval.sets.pictures import Preparation, open_image_set
from brickwork.files import write_json

ALL = MetricSettings(("fd", "kd", "prdc", "is", "sfd"), subsets=4, subset_size=20, splits=3)


@pytest.fixture
def reference(extractor, pixels, write_folder) -> Reference:
    return make_reference(write_folder(pixels, "real"), extractor, "clean", progress=False)


@pytest.fixture
def other_pixels(pixels):
    generator = np.random.default_rng(5)
    return (pixels[generator.permutation(len(pixels))].astype(int) * 0.8 + 20).astype(np.uint8)[:, ::-1].copy()


@pytest.fixture
def result(reference, extractor, other_pixels, write_folder):
    return calculate([write_folder(other_pixels, "samples")], reference, extractor, ALL, progress=False)


def test_a_set_measured_whole_equals_its_parts_put_together(extractor, pixels, write_folder):
    images = open_image_set(write_folder(pixels))
    measured = extract_features(images, extractor, PROTOCOLS["clean"], keep=("features", "logits"), progress=False)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = extractor(batch, PROTOCOLS["clean"])
    torch.testing.assert_close(measured.outputs["features"], expected["features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.outputs["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
    count, mean, covariance = feature_statistics(measured.outputs["features"])
    assert measured.statistics["features"][0] == count == 70
    torch.testing.assert_close(measured.statistics["features"][1], mean)
    torch.testing.assert_close(measured.statistics["features"][2], covariance)
    assert set(measured.statistics) == {"features", "spatial"}


def test_a_picture_cut_short_spoils_no_number(extractor, pixels, write_folder):
    folder = write_folder(pixels[:40])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    noise.save(folder / "0033.png")
    (folder / "0033.png").write_bytes((folder / "0033.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"1 \(0033.png\) of 40 .* cannot be decoded"):
        extract_features(open_image_set(folder), extractor, PROTOCOLS["clean"], progress=False)


def test_result_says_all_that_its_numbers_depend_on(result, reference):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["protocol"]["name"] == "clean" and result["count"] == 70
    assert result["extractor"]["weights_sha256"] == reference.info["extractor"]["weights_sha256"]
    assert result["reference"]["identity"] == reference.identity
    assert set(result["metrics"]) == {
        "FD-Small", "KD-Small", "precision", "recall", "density", "coverage", "IS-Small", "sFD-Small",
    }  # fmt: skip
    assert result["metrics"]["KD-Small"]["spread_over"] == "4 subsets"
    assert result["metrics"]["FD-Small"]["spread"] is None
    assert result["versions"]["torch"] == torch.__version__
    assert len(result["sets"][0]["data_sha256"]) == 64


def test_result_is_the_distance_of_the_features(result, reference, extractor, other_pixels):
    features = extractor(torch.from_numpy(other_pixels).permute(0, 3, 1, 2), PROTOCOLS["clean"])["features"]
    expected = frechet_distance(*feature_statistics(features)[1:], *reference.statistics["features"][1:])
    assert result["metrics"]["FD-Small"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3


def test_several_sets_give_mean_and_spread(reference, extractor, pixels, other_pixels, write_folder):
    folders = [write_folder(pixels[::-1], "a"), write_folder(other_pixels, "b")]
    metric = calculate(folders, reference, extractor, ALL, progress=False)["metrics"]["FD-Small"]
    assert metric["spread_over"] == "2 sets" and len(metric["values"]) == 2
    assert metric["mean"] == pytest.approx(np.mean(metric["values"]))
    assert metric["spread"] == pytest.approx(np.std(metric["values"], ddof=1))
    assert metric["values"][0] == pytest.approx(0, abs=1e-9)  # the reference's own pictures, in another order


def test_reference_file_is_read_as_it_was_written(reference, tmp_path):
    reference.save(tmp_path / "ref.safetensors")
    loaded = Reference.load(tmp_path / "ref.safetensors")
    assert loaded.info == reference.info and loaded.identity == reference.identity
    assert torch.equal(loaded.features, reference.features) and torch.equal(loaded.digests, reference.digests)
    for name, (count, mean, covariance) in reference.statistics.items():
        assert loaded.statistics[name][0] == count
        assert torch.equal(loaded.statistics[name][1], mean) and mean.dtype == torch.float64
        assert torch.equal(loaded.statistics[name][2], covariance)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a reference file"):
        Reference.load(tmp_path / "other.safetensors")


def test_a_damaged_reference_is_answered_by_file_and_key(reference, tmp_path):
    path, generator, refused = tmp_path / "r.safetensors", random.Random(0), 0
    reference.save(path)
    whole = path.read_bytes()
    for _ in range(300):
        at = generator.randrange(4000)
        path.write_bytes(whole[:at] + bytes([generator.randrange(256)]) + whole[at + generator.choice((0, 1, 1, 9)) :])
        try:
            Reference.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100
    for key, value, message in (("count", "7", "`count` is '7'"), ("protocol", {"name": 1}, "`protocol.name` is '1'")):
        changed = replace(reference, info=reference.info | {key: value})
        changed.save(path)
        with pytest.raises(ValueError, match=f"r.safetensors is damaged: {message}"):
            Reference.load(path)
    replace(reference, digests=reference.digests[:3]).save(path)
    with pytest.raises(ValueError, match=r"the tensor 'digests' is \(3, 32\), not \(70, 32\)"):
        Reference.load(path)


def test_identity_follows_data_and_protocol(extractor, pixels, write_folder):
    folder = write_folder(pixels)
    base = make_reference(folder, extractor, "clean", progress=False)
    assert make_reference(folder, extractor, "clean", progress=False).identity == base.identity
    assert make_reference(folder, extractor, "adm", progress=False).identity != base.identity
    assert make_reference(folder, extractor, "clean", limit=69, progress=False).identity != base.identity


def test_unlike_things_are_refused(reference, extractor, pixels, write_folder):
    def measure(picture_set, name, metrics=("fd",), **options):
        return calculate([write_folder(picture_set, name)], reference, extractor, MetricSettings(metrics), **options)

    with pytest.raises(ValueError, match="samples: 8 images for a Fréchet distance of 8 features"):
        measure(pixels[:8], "few", progress=False)
    assert measure(pixels[:8], "few2", ("kd",), progress=False)["metrics"]["KD-Small"]["settings"]["subset_size"] == 8
    with pytest.raises(ValueError, match="are 10x12 and the reference's 20x12"):
        measure(pixels[:, :, :10], "narrow", progress=False)
    changed = type(extractor)(**{**extractor.__dict__, "digest": "f" * 64})
    with pytest.raises(ValueError, match="the reference was made with small"):
        calculate([], reference, changed)
    with pytest.raises(ValueError, match="has 60 pictures and .* 70"):
        calculate([write_folder(pixels, "x"), write_folder(pixels[:60], "y")], reference, extractor, progress=False)
    twice = [write_folder(pixels, "once"), write_folder(pixels, "again")]
    with pytest.raises(ValueError, match="once and .*again hold the same pictures"):
        calculate(twice, reference, extractor, progress=False)
    with pytest.raises(ValueError, match="did you mean 'prdc'"):
        MetricSettings(("prd",))


def test_a_reference_without_features_serves_for_the_frechet_distance_alone(extractor, pixels, write_folder):
    folder = write_folder(pixels)
    bare = make_reference(folder, extractor, "clean", keep_features=False, progress=False)
    assert bare.features is None
    assert calculate([folder], bare, extractor, MetricSettings(("fd",)), progress=False)["metrics"]
    with pytest.raises(ValueError, match="holds no features"):
        calculate([folder], bare, extractor, MetricSettings(("kd",)), progress=False)


def test_copies_of_training_pictures_are_seen(reference, extractor, pixels, other_pixels, tmp_path, write_folder):
    folder = write_folder(np.concatenate([pixels[3:6], other_pixels[:3]]), "samples")
    images = open_image_set(folder)
    features = extract_features(images, extractor, PROTOCOLS["clean"], progress=False).outputs["features"]
    found = memorisation(reference, features)
    assert [rows[0] for rows in found["nearest"]["rows"][:3]] == [3, 4, 5]
    assert 0.5 <= found["copies"] < 1
    names = write_pictures(tmp_path / "result", images, Preparation(), found, reference)
    assert names == {"grid": "result.grid.png", "neighbours": "result.neighbours.png"}
    sheet = np.asarray(Image.open(tmp_path / "result.neighbours.png"))
    np.testing.assert_array_equal(sheet[:12, :20], sheet[20:32, :20])  # the copy above its original


def test_neighbours_are_left_out_where_the_training_pictures_have_changed(reference, extractor, pixels, tmp_path):
    nearest = {"nearest": {"rows": [[0]]}}
    real = tmp_path / "real"
    images = open_image_set(real)
    assert "neighbours" in write_pictures(tmp_path / "r", images, Preparation(), nearest, reference)
    Image.fromarray(pixels[9]).save(real / "0000.png")
    assert "neighbours" not in write_pictures(tmp_path / "r", images, Preparation(), nearest, reference)


def test_comparison_shows_differences_and_spreads(result):
    def with_values(name, mean, spread):
        metric = {"mean": mean, "spread": spread, "spread_over": "3 sets", "values": [], "settings": {}}
        return {**result, "name": name, "metrics": {"FD-Small": metric}}

    found = compare([with_values("first", 7.0, 0.3), with_values("second", 6.5, 0.4)])
    second = found["metrics"]["FD-Small"][1]
    assert second["difference"] == -0.5 and second["spread_of_difference"] == pytest.approx(0.5)
    assert "7.00 ± 0.30" in comparison_table(found) and "6.50 ± 0.40 (-0.50 ± 0.50)" in comparison_table(found)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"protocol": {"name": "adm"}}, "protocol: one clean, two adm"),
        ({"count": 71}, "N: one 70, two 71"),
        ({"reference": {"identity": "other"}}, "reference: one"),
        ({"extractor": {"name": "small", "weights_sha256": "0" * 64}}, "extractor: one small"),
        (
            {"metrics": {"precision": {"settings": {"k": 4}, "mean": 1, "spread": None, "spread_over": None}}},
            "settings",
        ),
    ],
)
def test_unlike_results_are_refused_unless_forced(result, change, reason):
    one, two = {**result, "name": "one"}, {**result, "name": "two", **change}
    with pytest.raises(ValueError, match=f"cannot be compared.*{reason}.*--force"):
        compare([one, two])
    forced = compare([one, two], force=True)
    assert any(reason in line for line in forced["not_comparable"])
    assert "NOT COMPARABLE" in comparison_table(forced)


def test_comparison_needs_two_results_with_something_in_common(result, tmp_path):
    with pytest.raises(ValueError, match="need at least two"):
        compare([result])
    with pytest.raises(ValueError, match="no metric in common"):
        compare([result, {**result, "metrics": {}}])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result"):
        read_result(tmp_path / "x.json")


def run(name: str, *words: str):
    parser = argparse.ArgumentParser()
    getattr(evaluate, f"configure_{name}")(parser)
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


def test_the_command_from_pictures_to_a_comparison(
    extractor, pixels, other_pixels, write_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("brickwork.eval.extractors.features.load_extractor", lambda *arguments: extractor)
    reference, one, two = tmp_path / "ref.safetensors", tmp_path / "one.json", tmp_path / "two.json"
    run("ref", write_folder(pixels, "real"), "-o", reference, "--extractor", "small", "--protocol", "adm")
    samples = write_folder(other_pixels, "samples")
    run("calc", samples, "--reference", reference, "-o", one, "--tag", "images=100", "--metrics", "fd,prdc")
    run("calc", samples, "--reference", reference, "-o", two, "--name", "again", "--metrics", "fd,prdc")
    assert "N = 70" in capsys.readouterr().out
    stored = read_result(one)
    assert stored["tags"] == {"width": 20, "height": 12, "images": 100.0} and stored["protocol"]["name"] == "adm"
    assert stored["metrics"] == read_result(two)["metrics"]
    assert (tmp_path / stored["pictures"]["grid"]).is_file() and 0 < stored["memorisation"]["copies"] < 1
    calc = ("calc", samples, "--reference", reference, "-o", one, "--metrics", "fd")
    with pytest.raises(ValueError, match="one.json', which is there already; name another, or add --overwrite"):
        run(*calc)
    run(*calc, "--overwrite", "--metrics", "fd,prdc")
    ref = ("ref", tmp_path / "real", "-o", reference, "--extractor", "small", "--protocol", "adm")
    with pytest.raises(ValueError, match="is there already; name another, or add --overwrite"):
        run(*ref)
    run(*ref, "--overwrite")
    capsys.readouterr()
    run("compare", one, two)
    assert "again" in capsys.readouterr().out
    write_json(two, {**read_result(two), "count": 71})
    with pytest.raises(ValueError, match="N: samples 70, again 71"):
        run("compare", one, two)
    run("compare", one, two, "--force", "--json")
    assert json.loads(capsys.readouterr().out)["not_comparable"]


@pytest.mark.parametrize("output", ["file/x{}", "x.txt", "folder{}"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, output):
    (tmp_path / "file").write_text("")
    for command, suffix in ((("ref", "nowhere"), ".safetensors"), (("calc", "nowhere", "--reference", "r"), ".json")):
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(ValueError, match="^output: "):
            run(*command, "-o", tmp_path / output.format(suffix))


def test_pictures_are_looked_for_before_the_network(reference, extractor, tmp_path, monkeypatch):
    monkeypatch.setattr("brickwork.eval.extractors.features.load_extractor", lambda *arguments: pytest.fail("loaded"))
    reference.save(tmp_path / "ref.safetensors")
    calc = ("calc", "--reference", tmp_path / "ref.safetensors", "-o", tmp_path / "result.json")
    real, missing = tmp_path / "real", tmp_path / "missing"
    for words in (
        ("ref", missing, "-o", tmp_path / "other.safetensors"),
        (*calc, real, missing),
        (*calc, real, "--paired", "pipeline", missing),
    ):
        with pytest.raises(ValueError, match="missing', which is not there"):
            run(*words)


@pytest.mark.parametrize("device", ["cpuu", "xla"])
def test_a_device_that_torch_cannot_use_is_said(reference, extractor, tmp_path, monkeypatch, device):
    monkeypatch.setattr("brickwork.eval.extractors.features.load_extractor", lambda *arguments: extractor)
    reference.save(tmp_path / "ref.safetensors")
    real = tmp_path / "real"
    for words in (
        ("ref", real, "-o", tmp_path / "other.safetensors"),
        ("calc", real, "--reference", tmp_path / "ref.safetensors", "-o", tmp_path / "result.json"),
        ("gen", "lego-avatars-64", "-n", "1", "-o", tmp_path / "samples"),
    ):
        with pytest.raises(ValueError, match=f"`--device` is '{device}', which torch cannot use here"):
            run(*words, "--device", device)
