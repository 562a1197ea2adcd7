"""Images from folders, Parquet files and shards: columns, classes, splits, shapes, and pictures that are broken."""

import io
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from brickwork.eval.sets.decode import open_upright
from brickwork.eval.sets.shards import shard_paths
from brickwork.training.data.buckets import bucket_shapes, nearest_bucket
from brickwork.training.data.build.codepoints import base_codepoints
from brickwork.training.data.images import (
    BrokenImage,
    LabelledImages,
    crop_to,
    load_table,
    to_rgb,
    to_unit_range,
)


@pytest.fixture(scope="module")
def table(request):
    return load_table(str(request.path.parents[2] / "data" / "emoji" / "sample.parquet"))


def png(width, height, colour=(255, 0, 0), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def image_folder(tmp_path):
    """Two classes in sub-folders, wide and tall pictures, one broken."""
    for name, sizes in {"cats": [(16, 8), (8, 16)], "dogs": [(8, 8), (30, 10), (10, 30)]}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(png(*size))
    (tmp_path / "set" / "dogs" / "9.png").write_bytes(png(40, 40)[:60])
    return tmp_path / "set"


def test_sub_folders_are_classes(image_folder):
    images = LabelledImages(load_table(str(image_folder)), 8)
    assert images.class_names == ["cats", "dogs"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1]
    picture, label = images[0]
    assert (picture.shape, picture.dtype, label) == ((8, 8, 3), np.uint8, 0)


def test_classes_are_chosen_and_numbered_in_the_order_given(table):
    images = LabelledImages(table, 8, classes=["Flags", "Smileys & Emotion"])
    assert images.class_names == ["Flags", "Smileys & Emotion"]
    names = table.features["label"].names
    expected = [
        ["Flags", "Smileys & Emotion"].index(names[n]) for n in table["label"] if names[n] in images.class_names
    ]
    assert images.labels.tolist() == expected


def test_names_as_labels(table):
    images = LabelledImages(table, 8, label_column="style")
    assert images.class_names == ["fluent", "twemoji"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "imag"}, "`data.image_column` is 'imag'; did you mean image"),
        ({"label_column": "lable"}, "`data.label_column` is 'lable'; did you mean label"),
        ({"group_column": "zzz"}, "'zzz'; there is only .*image.*; data.group_column=null goes without"),
        ({"classes": ["Smileys"]}, r"`data.classes` has \['Smileys'\]; the data set has Smileys & Emotion"),
        ({"classes": []}, "no image of the wanted classes"),
        ({"label_column": None, "classes": ["x"]}, "the data set has no classes"),
    ],
)
def test_bad_choices_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(table, 8, **options)


def test_bad_sources_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`data.source` is empty"):
        load_table("")
    with pytest.raises(ValueError, match="`data.source` is .*nowhere', which is not there"):
        load_table(str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not there; `brickwork data build emoji` makes it"):
        load_table("data/emoji/train.parquet")
    with pytest.raises(ValueError, match="a folder without pictures"):
        load_table(str(tmp_path))


def test_held_out_groups_do_not_leak(table):
    images = LabelledImages(table, 8, group_column="codepoints")
    train, held_out = images.split(0.3)
    assert sorted([*train, *held_out]) == list(range(len(images)))
    drawings = [base_codepoints(code) for code in table["codepoints"]]
    assert len(set(drawings)) < len(drawings)  # styles and skin tones of one drawing
    assert not {drawings[row] for row in train} & {drawings[row] for row in held_out}
    assert 0.1 < len(held_out) / len(images) < 0.5
    assert len(images.split(0)[1]) == 0


def test_rows_that_come_later_move_nothing(table):
    some = LabelledImages(table.select(range(50)), 8, group_column="codepoints").split(0.3)[1]
    every = LabelledImages(table, 8, group_column="codepoints").split(0.3)[1]
    assert [row for row in every if row < 50] == some.tolist()


def test_fingerprint_follows_what_is_in_the_data_and_not_where_it_is(table, tmp_path):
    path = tmp_path / "moved.parquet"
    table.to_parquet(str(path))
    here = LabelledImages(table, 8, group_column="codepoints").fingerprint
    assert LabelledImages(load_table(str(path)), 8, group_column="codepoints").fingerprint == here
    assert LabelledImages(table.select(range(100)), 8, group_column="codepoints").fingerprint != here
    assert LabelledImages(table, 8, label_column=None, group_column="codepoints").fingerprint != here


def test_transparency_is_laid_on_white():
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("LA", (1, 1), (0, 255))).getpixel((0, 0)) == (0, 0, 0)


def test_unit_range():
    array = to_unit_range(np.array([[[0, 127.5, 255]]]))
    assert array.shape == (3, 1, 1)
    assert array.ravel().tolist() == [-1, 0, 1]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (12, 5)])
def test_the_centre_is_kept_whole_and_not_stretched(height, width):
    image = Image.new("RGB", (60, 40), "blue")
    image.paste("red", (20, 15, 40, 25))
    picture = crop_to(image, height, width)
    assert picture.shape == (height, width, 3)
    assert picture[height // 2, width // 2, 0] > 200
    assert picture[0, 0].tolist() == [0, 0, 255]


def test_a_photograph_lying_on_its_side_is_turned():
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, format="JPEG", exif=exif)
    assert open_upright(file.getvalue()).size == (10, 20)


@pytest.mark.parametrize("value", [b"", b"no picture", {"bytes": None, "path": "/nowhere.png"}, {"bytes": None}])
def test_what_is_no_picture_is_broken(value):
    with pytest.raises(BrokenImage):
        open_upright(value)


def test_a_picture_cut_short_is_broken(image_folder):
    with pytest.raises(BrokenImage):
        LabelledImages(load_table(str(image_folder)), 8)[5]


def test_whole_pictures_are_decoded_once_as_far_as_memory_goes(table, monkeypatch):
    images = LabelledImages(table, 8)
    whole = images.decoded(3)
    assert np.array_equal(crop_to(whole, 5, 7), images.picture(3, (5, 7)))
    assert (whole.height, whole.width) == images.natural_size(3)
    images.table = None  # not asked again
    assert np.array_equal(np.asarray(images.decoded(3)), np.asarray(whole))
    assert images.natural_size(3) == (whole.height, whole.width)
    monkeypatch.setattr("brickwork.training.data.images.CACHE_BYTES", 0)
    full = LabelledImages(table, 8)
    full.decoded(3)
    full.table = None
    with pytest.raises(TypeError):
        full.decoded(3)


def test_bucket_shapes():
    shapes = bucket_shapes(64, 8, 2.0)
    assert (64, 64) in shapes
    assert all(h % 8 == 0 == w % 8 and h * w <= 64 * 64 and max(h, w) <= 2 * min(h, w) for h, w in shapes)
    assert {(w, h) for h, w in shapes} == set(shapes)
    assert len({max(shape) for shape in shapes}) == (len(shapes) + 1) // 2
    assert bucket_shapes(64, 64, 2.0) == [(64, 64)]


def test_the_nearest_bucket_is_the_one_of_the_nearest_shape():
    shapes = [(16, 4), (8, 8), (4, 16)]
    assert [nearest_bucket(h, w, shapes) for h, w in ((300, 100), (100, 110), (100, 190), (90, 300))] == [0, 1, 1, 2]


def test_rows_go_to_buckets_and_get_their_shape(image_folder):
    images = LabelledImages(load_table(str(image_folder)), 8, bucket_step=2, bucket_max_aspect=3.0)
    shapes = [images.shapes[bucket] for bucket in images.buckets]
    assert shapes[0][0] < shapes[0][1]  # 16 wide, 8 high
    assert shapes[1] == shapes[0][::-1]
    assert shapes[2] == shapes[5] == (8, 8)  # the broken one counts as a square until it is drawn
    assert images[3][0].shape == (*shapes[3], 3)
    assert images.sample(4)[0].shape == (3, *shapes[4])


@pytest.fixture
def shards(tmp_path):
    """Three shards with four pictures each, labels as text, some metadata."""
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "shards" / f"{shard:03d}.tar", "w") as tar:
            for number in range(4):
                for suffix, data in (
                    ("png", png(8, 8, (shard * 10, number * 10, 0))),
                    ("cls", str(number % 2).encode()),
                    ("json", b'{"artist": "a%d"}' % number),
                ):
                    info = tarfile.TarInfo(f"deep/{shard}-{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "shards"


def test_shards_are_a_table(shards):
    images = LabelledImages(load_table(str(shards)), 4, group_column="artist")
    assert images.labels.tolist() == [0, 1] * 6
    assert images.groups == ["a0", "a1", "a2", "a3"] * 3
    assert images[6][0][0, 0].tolist() == [10, 20, 0]
    chosen = LabelledImages(load_table(str(shards)), 4, classes=["1"])
    assert chosen.table.shard_of_row.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen[3][0][0, 0].tolist() == [10, 30, 0]


def test_a_range_of_shards(shards):
    assert shard_paths(str(shards / "{000..002}.tar")) == [str(shards / f"00{n}.tar") for n in range(3)]
    assert len(load_table(str(shards / "{001..002}.tar"))) == 8


def test_a_shard_that_is_missing_or_cut_short_is_named(shards):
    with pytest.raises(ValueError, match="003.tar cannot be read"):
        load_table(str(shards / "{000..003}.tar"))
    (shards / "001.tar").write_bytes((shards / "001.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match="001.tar cannot be read"):
        load_table(str(shards))


def test_shards_are_read_by_workers(shards):
    from itertools import islice

    from brickwork.training.data.stream import PositionBatches, TrainingStream, stream_batches

    images = LabelledImages(load_table(str(shards)), 4)
    stream = TrainingStream(images, np.arange(12), 0)

    def rows(workers):
        loader = stream_batches(stream, PositionBatches(4, 1, 0, 1), workers)
        return [batch["image"][:, :2, 0, 0].tolist() for batch in islice(loader, 6)]

    assert rows(2) == rows(0)


def test_a_data_set_of_bytes(table):
    plain = table.cast_column("image", datasets.Image(decode=False))
    plain = plain.map(lambda row: {"image": row["image"]["bytes"]}, features=None)
    assert (LabelledImages(plain, 8)[3][0] == LabelledImages(table, 8)[3][0]).all()
