"""The region head and the label head: the formulas of ViLD, and that they learn, save and find."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brickwork import BlockUNet2DModel, ClassToImagePipeline, LegoPipeline, LegoTransformer2DModel
from brickwork.eval.judge.denoiser_features import DenoiserFeatures, Standardized
from brickwork.eval.judge.label_head import LabelHead, mean_overlap, soft_overlap
from brickwork.eval.judge.region_detector import RegionDetector
from brickwork.eval.judge.region_head import (
    UNNAMED,
    RegionHead,
    box_overlaps,
    crop_regions,
    decode_boxes,
    encode_boxes,
    matched,
    proposals,
    region_losses,
)
from brickwork.eval.judge.scenes import make_scene
from brickwork.eval.judge.teachers import embed_regions, load_teacher
from brickwork.gen.blocks.windows import window_partition
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def lego():
    model = LegoTransformer2DModel(
        sample_size=8, num_classes=2, window_sizes=(8, 4), patch_sizes=(2, 1), num_layers=(2, 1), hidden_sizes=(16, 8),
        num_attention_heads=2,
    )  # fmt: skip
    return LegoPipeline(randomised(model), EDMHeunScheduler())


def make_head(**config):
    torch.manual_seed(0)
    return RegionHead([4, 2], 6, ["circle", "square"], hidden_size=16, side=3, **config)


def test_regions_are_read_where_boxes_lie():
    maps = torch.randn(2, 3, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5]])
    regions = crop_regions(maps, boxes.expand(2, 2, 4), 8)
    torch.testing.assert_close(regions[:, 0], maps)
    torch.testing.assert_close(crop_regions(maps, boxes.expand(2, 2, 4), 4)[:, 1], maps[..., :4, 4:])


def test_boxes_are_coded_and_compared():
    anchors, boxes = proposals()[:20], torch.rand(20, 2).mul(0.5)
    boxes = torch.cat([boxes, boxes + 0.3], dim=1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes)
    assert box_overlaps(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.5, 0, 1.5, 1]])).item() == pytest.approx(
        1 / 3
    )
    assert (proposals() >= 0).all() and (proposals() <= 1).all()
    generator = torch.Generator().manual_seed(0)
    regions, classes, own = matched(proposals(), boxes[:2], torch.tensor([4, 7]), generator, 24)
    assert regions.shape == own.shape == (24, 4) and set(classes.tolist()) == {-1, 4, 7}
    assert torch.equal(regions[:2], boxes[:2]) and box_overlaps(regions, own).diagonal()[classes >= 0].min() >= 0.5


def test_the_formulas_are_vilds():
    """Cosines times 100 with the background first; the product to a third of vild's `postprocess_ops.py`."""
    head, generator = make_head(image_temperature=0.01), torch.Generator().manual_seed(1)
    text, image = (F.normalize(torch.randn(5, 6, generator=generator), dim=-1) for _ in range(2))
    classes, base = torch.randn(3, 6, generator=generator), torch.tensor([True, False, True])
    logits = head.text_logits(text, classes)
    background = head.background / head.background.norm()
    torch.testing.assert_close(logits[:, 0], 100 * text @ background)
    torch.testing.assert_close(logits[:, 1:], 100 * F.cosine_similarity(text[:, None], classes[None], dim=-1))
    by_text = logits.softmax(-1)[:, 1:]
    by_image = (100 * F.cosine_similarity(image[:, None], classes[None], dim=-1)).softmax(-1)
    third = torch.where(base, by_text, by_image)
    expected = (by_text * by_image * third) ** (1 / 3)
    torch.testing.assert_close(head.probabilities(text, image, classes, base), expected)


def test_new_names_are_the_image_branchs_and_known_ones_both_branches():
    head, generator = make_head(temperature=1.0, image_temperature=1.0), torch.Generator().manual_seed(3)
    text, image = (F.normalize(torch.randn(50, 6, generator=generator), dim=-1) for _ in range(2))
    classes, base = torch.randn(4, 6, generator=generator), torch.tensor([True, False, True, True])
    scores = head.scores(text, image, torch.full((50,), 2.0), classes, base)
    by_image = head.image_logits(image, classes).softmax(-1)
    object_there = (1 - head.text_logits(text, classes).softmax(-1)[:, 0]) * torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(scores.sum(-1), object_there)
    torch.testing.assert_close(scores[:, 1], by_image[:, 1] * object_there)
    ensemble = head.probabilities(text, image, classes, base)
    torch.testing.assert_close(scores[:, 0] / scores[:, 3], ensemble[:, 0] / ensemble[:, 3])


def test_channels_are_brought_to_one_scale():
    maps = [torch.randn(6, 3, 4, 4) * torch.tensor([1.0, 10, 0.1]).view(3, 1, 1) + 5, torch.randn(6, 2, 2, 2)]
    scale = Standardized([3, 2])
    assert all(torch.equal(a, b) for a, b in zip(scale(maps), maps))  # before it is fitted
    scale.fit(maps)
    for one in scale(maps):
        values = one.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(1), torch.ones(len(values)))
    assert len(scale.state_dict()) == 4


def test_crops_are_squares_that_keep_shapes():
    seen = []

    class Looks:
        scales = (1.0, 1.5)

        def pictures(self, crops):
            seen.append(crops)
            return torch.ones(len(crops), 2)

    picture = torch.zeros(3, 64, 32, dtype=torch.uint8)
    picture[:, 16:48, 12:20] = 255  # 32 high, 8 wide
    embed_regions(Looks(), picture, torch.tensor([[12 / 32, 0.25, 20 / 32, 0.75]]), side=32)
    (one,), (wider,) = seen
    assert (one[0] > 128).float().mean() == pytest.approx(0.25, abs=0.02)
    assert (wider[0] > 128).float().mean() == pytest.approx(0.25 / 1.5**2, abs=0.02)


def test_losses_reach_every_parameter_and_heads_are_saved(tmp_path):
    head, generator = make_head(), torch.Generator().manual_seed(2)
    maps, regions = [torch.randn(2, 4, 8, 8), torch.randn(2, 2, 4, 4)], proposals()[:6].expand(2, 6, 4)
    classes = torch.tensor([[0, 1, UNNAMED, -1, 0, 1]] * 2)
    objects = classes != -1
    teacher, embeddings = F.normalize(torch.randn(2, 6, 6, generator=generator), dim=-1), torch.randn(2, 6)
    losses = region_losses(head, maps, regions, classes, regions, embeddings, teacher, objects)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    text, image, _, sure = head(maps, regions)
    torch.testing.assert_close(losses["image"], 10 * (1 - F.cosine_similarity(image, teacher, dim=-1))[objects].mean())
    named = classes != UNNAMED
    logits = head.text_logits(text, embeddings)[named]
    torch.testing.assert_close(losses["text"], F.cross_entropy(logits, classes[named] + 1))
    torch.testing.assert_close(losses["object"], F.binary_cross_entropy(sure.sigmoid(), objects.float()))
    head.save_pretrained(tmp_path)
    again = RegionHead.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(head(maps, regions[0]), again(maps, regions[0])))


def test_a_head_of_another_version_is_named(tmp_path):
    import json

    from brickwork.eval.judge.detectors import load_detector

    RegionHead([4], 8, ["a"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["in_channels"] = sum(config.pop("channels"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="which another version made; train it again"):
        load_detector(f"region-head:{tmp_path}", "cpu")


def test_features_are_maps_of_what_the_network_computed(lego):
    features = DenoiserFeatures(lego)
    assert features.sites == ("bricks.1.blocks.0", "bricks.0.blocks.0", "bricks.0.blocks.1") and features.size == 8
    pictures = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    maps = features(pictures)
    assert [tuple(one.shape) for one in maps] == [(3, 8, 8, 8), (3, 16, 4, 4), (3, 16, 4, 4)]
    assert torch.equal(features(pictures)[0], maps[0])
    assert DenoiserFeatures(lego, **features.to_dict() | {"size": 12}).size == 12
    assert not torch.equal(features(pictures, 2.0)[0], maps[0])
    seen = {}
    handle = lego.transformer.bricks[1].blocks[0].register_forward_hook(lambda m, i, o: seen.update(output=o))
    features(pictures)
    handle.remove()
    torch.testing.assert_close(window_partition(maps[0], (4, 4)), seen["output"])
    larger = features(torch.randint(256, (1, 3, 12, 20), dtype=torch.uint8))
    assert larger[0].shape == (1, 8, 12, 20) and larger[1].shape == (1, 16, 6, 10)
    for change, message in ({"sites": ["bricks.0.block.0"]}, "did you mean"), ({"sigma": 0.0}, "above 0"):
        with pytest.raises(ValueError, match=message):
            DenoiserFeatures(lego, **change)


def test_features_of_a_unet():
    unet = BlockUNet2DModel(
        in_channels=3, out_channels=3, sample_size=8, num_classes=2, block_types=("dit", "dit"),
        block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=8,
    )  # fmt: skip
    features = DenoiserFeatures(ClassToImagePipeline(randomised(unet), EDMHeunScheduler()))
    maps = features(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
    assert [one.shape[1] for one in maps] == features.channels


class Pixels:
    """Features for quick tests: the pixels, and their halves."""

    size, channels = 32, [3, 3]

    def __call__(self, pictures, sigma=None):
        pixels = pictures.float() / 127.5 - 1
        return [F.avg_pool2d(pixels, 2), F.avg_pool2d(pixels, 4)]

    def to_dict(self):
        return {}


@pytest.fixture(scope="module")
def scenes():
    from brickwork.training.heads import read_scenes

    return read_scenes("shapes", 32, 40)


def test_a_region_head_learns_to_find(scenes, monkeypatch):
    from brickwork.training import heads
    from brickwork.training.heads import RegionTask, region_scores, teacher_scores, train_region_head

    monkeypatch.setattr(heads, "BATCH", 4)
    monkeypatch.setattr(heads, "REGIONS", 16)

    teacher = load_teacher("shapes")
    task = RegionTask.of(scenes, Pixels(), teacher)
    assert teacher_scores(task, ["square"])["new"] > 0.9
    head = train_region_head(task, Pixels(), [], 150, 4e-3)
    detector = RegionDetector(head, Pixels(), teacher)
    assert region_scores(detector, scenes[:8], [])["trained"] > 0.3
    (found,) = detector([make_scene(np.random.default_rng(0)).draw(48)], [["circle", "triangle"]])
    assert list(found) == ["circle", "triangle"]
    boxes = [one.box for objects in found.values() for one in objects]
    assert all(0 <= left < right <= 48 and 0 <= top < bottom <= 48 for left, top, right, bottom in boxes)
    apart = train_region_head(task, Pixels(), ["square"], 2)
    assert list(apart.config.names) == ["circle", "triangle"]
    assert "square" in RegionDetector(apart, Pixels(), teacher)([np.zeros((32, 32, 3), np.uint8)], [["square"]])[0]
    with pytest.raises(ValueError, match="`leave_out` has 'squares'.*did you mean 'square'"):
        train_region_head(task, Pixels(), ["squares"], 1)


def test_a_label_head_learns_masks(scenes, tmp_path):
    from brickwork.training.heads import LEVELS, cached, label_scores, train_label_head

    maps = cached(Pixels(), scenes, LEVELS)
    head = train_label_head(scenes, Pixels(), maps, 80, 1e-2)
    scores = label_scores(head, dict.fromkeys(LEVELS, maps), scenes)
    assert list(scores) == list(LEVELS) and min(scores.values()) > 0.4
    head.save_pretrained(tmp_path)
    again, maps = LabelHead.from_pretrained(tmp_path).eval(), Pixels()(torch.stack([scenes[0].picture]))
    assert torch.equal(head(maps), again(maps)) and head(maps).shape == (1, 4, 32, 32)
    (found,) = head.labels(maps)
    for objects in found.values():
        for one in objects:
            left, top, right, bottom = map(int, one.box)
            assert one.mask[top:bottom, left:right].sum() == one.mask.sum() and 0 < one.score <= 1


def test_overlap_of_masks_is_the_mean_over_classes():
    wanted = torch.tensor([[[0, 0, 1, 1]]])
    assert mean_overlap(wanted, wanted, 3) == 1.0
    found = torch.tensor([[[0, 1, 1, 1]]])
    assert mean_overlap(found, wanted, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    logits = 100 * F.one_hot(found, 4).movedim(-1, 1).float()
    assert 1 - soft_overlap(logits, wanted).item() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_teachers_tell_their_names_apart(clip_folder):
    shapes = load_teacher("shapes")
    scene = make_scene(np.random.default_rng(4))
    picture, boxes = torch.from_numpy(scene.draw(64)).permute(2, 0, 1), torch.tensor([s.box for s in scene.shapes])
    directions, names = embed_regions(shapes, picture, boxes), list(shapes.names)
    nearest = [names[i] for i in (directions @ shapes.texts(names).T).argmax(dim=1).tolist()]
    assert nearest == [shape.name for shape in scene.shapes]
    clip = load_teacher(f"clip:{clip_folder}", "cpu")
    for teacher, words in ((load_teacher("avatar-attributes"), ["micah", "bottts"]), (clip, ["cat", "dog"])):
        texts, found = teacher.texts(words), embed_regions(teacher, picture, boxes)
        assert texts.shape[1] == found.shape[1] and len(texts) == len(found) == 2
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="`names` has 'micha', which avatar-attributes does not know; did you mean"):
        load_teacher("avatar-attributes").texts(["micha"])
    assert {"braids", "hoodie"} <= set(load_teacher("avatar-attributes").names)
    assert not {"black", "none"} & set(load_teacher("avatar-attributes").names)  # of several attributes
    with pytest.raises(ValueError, match="`teacher` is 'shape'; did you mean 'shapes'"):
        load_teacher("shape")
