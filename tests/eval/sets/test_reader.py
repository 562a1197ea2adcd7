"""The picture reader, kind by kind of what people's folders and tables hold."""

import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from brickwork.eval.sets import open_pictures
from brickwork.eval.sets.decode import SUFFIXES, BrokenPicture, open_upright, to_rgb
from brickwork.eval.sets.pictures import Preparation, open_image_set
from brickwork.training.data.images import LabelledImages, load_table

ODD = Path(__file__).parents[4] / "shared" / "data" / "odd_pictures"


def tile(path, colour=(10, 20, 30), size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def png(colour=(10, 20, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, format="PNG")
    return file.getvalue()


def read(source, **options):
    return [(p.name, p.caption, p.label) for p in open_pictures(source, **options)]


def both(folder):
    """A folder's pictures as evaluation and as training read them."""
    images = open_image_set(folder)
    one = [Preparation()(images.open(i)) for i in range(len(images))]
    table = load_table(str(folder))
    trained = LabelledImages(table, 8, label_column=None)
    other = [np.asarray(trained.decoded(row)) for row in range(len(trained))]
    return one, other


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpe", "jfif", "JPEG", "webp", "gif", "avif", "bmp", "TIFF", "ppm"])
def test_suffixes_in_any_case(tmp_path, suffix):
    tile(tmp_path / f"a.{suffix}")
    assert f".{suffix.lower()}" in SUFFIXES
    (picture,) = open_pictures(tmp_path)
    assert picture.name == f"a.{suffix}" and picture.image.shape == (4, 6, 3) and picture.image.dtype == np.uint8


def deep(numbers, dtype, path):
    Image.fromarray(np.full((4, 6), numbers, dtype=dtype)).save(path)


@pytest.mark.parametrize(
    "numbers, dtype, suffix, grey",
    [
        (257 * 77, np.uint16, "png", 77),
        (257 * 78, np.uint16, "tif", 78),
        (65535, np.int32, "tif", 255),
        (257 * 9, np.int32, "tif", 9),
        (0.5, np.float32, "tif", 128),
        (1.0, np.float32, "tif", 255),
        (200.0, np.float32, "tif", 200),
        (True, bool, "png", 255),
        (False, bool, "tif", 0),
    ],
)
def test_depths(tmp_path, numbers, dtype, suffix, grey):
    deep(numbers, dtype, tmp_path / f"a.{suffix}")
    evaluated, trained = both(tmp_path)
    assert (evaluated[0] == grey).all() and (trained[0] == grey).all() and evaluated[0].shape == (4, 6, 3)


@pytest.mark.parametrize(
    "numbers, dtype, reason",
    [
        (65536, np.int32, "go up to 65,536"),
        (-3, np.int32, "negative"),
        (300.0, np.float32, "go up to 300"),
        (-0.1, np.float32, "negative"),
        (np.nan, np.float32, "not finite"),
    ],
)
def test_numbers_that_mean_no_grey_are_left_out_and_named(tmp_path, numbers, dtype, reason):
    deep(numbers, dtype, tmp_path / "a.tif")
    tile(tmp_path / "b.png")
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 2 and pictures.skipped == []
    for _ in range(2):  # said once, however often it is read
        assert [picture.name for picture in pictures] == ["b.png"]
    ((name, why),) = pictures.skipped
    assert name == "a.tif" and reason in why
    with pytest.raises(ValueError, match=f"'a.tif' cannot be read .*{reason}"):
        pictures[0]


@pytest.mark.parametrize("background, ground", [("white", (255, 255, 255)), ("#102030", (16, 32, 48))])
def test_transparency_lies_on_the_background(tmp_path, background, ground):
    tile(tmp_path / "rgba.png", (200, 0, 0, 0), mode="RGBA")
    tile(tmp_path / "la.png", (90, 0), mode="LA")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=1)
    tile(tmp_path / "rgb.png", (5, 6, 7)).exists()
    Image.new("RGB", (6, 4), (5, 6, 7)).save(tmp_path / "rgb.png", transparency=(5, 6, 7))
    Image.fromarray(np.full((4, 6), 300, np.uint16)).save(tmp_path / "deep.png", transparency=300)
    for picture in open_pictures(tmp_path, background):
        assert picture.image[2, 3].tolist() == list(ground), picture.name
    tile(tmp_path / "cmyk.jpg", (0, 0, 0, 0), mode="CMYK")
    assert open_pictures(tmp_path)[0].image.min() == 255
    with pytest.raises(ValueError, match="`background` is 'whit'; give a colour"):
        open_pictures(tmp_path, "whit")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_in_training_and_evaluation(tmp_path, orientation):
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
    turn = {1: (), 2: ("FLIP_LEFT_RIGHT",), 3: ("ROTATE_180",), 4: ("FLIP_TOP_BOTTOM",), 5: ("TRANSPOSE",)}
    turn |= {6: ("ROTATE_90",), 7: ("TRANSVERSE",), 8: ("ROTATE_270",)}
    image = Image.fromarray(upright)
    for name in turn[orientation]:
        image = image.transpose(Image.Transpose[name])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    evaluated, trained = both(tmp_path)
    assert (evaluated[0] == upright).all() and (trained[0] == upright).all()


def test_names_with_words_of_splits_are_names(tmp_path):
    for name in ("train.png", "test/a.png", "dev/val.png", "validation/eval-2.png", "test/deep/b.png"):
        tile(tmp_path / name)
    assert read(tmp_path) == [
        ("dev/val.png", None, "dev"),
        ("test/a.png", None, "test"),
        ("test/deep/b.png", None, "test"),
        ("train.png", None, None),
        ("validation/eval-2.png", None, "validation"),
    ]
    assert open_pictures(tmp_path).notes == ["1 pictures lie beside the folders of classes; they have no class."]


def test_the_class_is_the_first_folder(tmp_path):
    for name in ("cat/2023/a.png", "cat/2024/b.png", "dog/x.png"):
        tile(tmp_path / name)
    assert [label for _, _, label in read(tmp_path)] == ["cat", "cat", "dog"]
    images = LabelledImages(load_table(str(tmp_path)), 4)
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["only", "test"])
def test_one_class_alone(tmp_path, name):
    tile(tmp_path / name / "a.png")
    assert read(tmp_path) == [(f"{name}/a.png", None, name)]


def test_pictures_of_no_class_train_as_such(tmp_path):
    tile(tmp_path / "a.png")
    tile(tmp_path / "k" / "b.png")
    images = LabelledImages(load_table(str(tmp_path)), 4)
    assert images.class_names == ["k"] and images.labels.tolist() == [1, 0]  # 1 is "no class" of one class


@pytest.mark.parametrize("folder", ["photos [2024]", "a*b?", "ümlaut {1..2}"])
def test_paths_with_signs_of_patterns(tmp_path, folder):
    tile(tmp_path / folder / "x[1].png")
    assert read(tmp_path / folder) == [("x[1].png", None, None)]
    datasets.Dataset.from_dict({"image": [{"bytes": png(), "path": None}], "text": ["t"]}).to_parquet(
        str(tmp_path / folder / "t.parquet")
    )
    assert read(tmp_path / folder / "t.parquet") == [("row 0", "t", None)]


def test_links_are_followed_but_not_in_circles(tmp_path):
    tile(tmp_path / "real" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "again")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "set" / "gone.png")
    assert read(tmp_path / "set") == [("linked/a.png", None, "linked")]
    assert sorted(map(str, open_pictures(tmp_path / "set").skipped)) == [
        "again: a link to a folder above it",
        "gone.png: a link to nothing",
    ]


def test_strays_are_left_out_and_said(tmp_path, caplog):
    tile(tmp_path / "a.png")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "old.tar", "notes.csv", "x.parquet", "b.txt", "__MACOSX"):
        (tmp_path / name).write_bytes(b"\0")
    pictures = open_pictures(tmp_path)
    assert [picture.name for picture in pictures] == ["a.png"]
    assert {name for name, _ in pictures.skipped} == {
        "._a.png", ".DS_Store", "Thumbs.db", "old.tar", "notes.csv", "x.parquet", "b.txt", "__MACOSX",
    }  # fmt: skip
    open_image_set(tmp_path)
    assert "Left out: hidden 3 (.DS_Store, ._a.png, __MACOSX)" in caplog.text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_captions_beside_pictures(tmp_path, mark):
    for name in ("a.png", "b.JPG", "sub/c.png"):
        tile(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(mark + b"a cat\r\n")
    (tmp_path / "b.caption").write_bytes(mark + b" a dog ")
    (tmp_path / "sub" / "c.TXT").write_bytes("ein Vogel".encode("utf-16"))
    assert [caption for _, caption, _ in read(tmp_path)] == ["a cat", "a dog", "ein Vogel"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "Metadata.JSONL"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_metadata_in_any_folder(tmp_path, name, mark):
    for picture in ("a.png", "sub/b.png", "sub/deep/c.png"):
        tile(tmp_path / picture)
    if name.endswith("csv"):
        text = "file_name,text,label\nb.png,one,x\ndeep\\c.png,,y\nlost.png,no,z\n"
    else:
        rows = [
            {"file_name": "b.png", "text": ["one"], "label": "x"},
            {"file_name": "deep\\c.png", "text": None, "label": "y"},
            {"file_name": "lost.png", "text": "no", "label": "z"},
        ]
        text = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "sub" / name).write_text(mark + text, encoding="utf-8")
    assert read(tmp_path) == [
        ("a.png", None, None),
        ("sub/b.png", "one", "x"),
        ("sub/deep/c.png", None, "y"),
    ]
    (skipped,) = open_pictures(tmp_path).skipped
    assert skipped.reason == "lines for pictures that are not there: 1 (lost.png)"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("metadata.jsonl", '{"file_name": "a.png"\n', r"metadata.jsonl', line 1, is no JSON"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n[1]\n', "line 2, is no object in braces, but list"),
        ("metadata.jsonl", '{"filename": "a.png"}', "line 1, has no 'file_name'.*is 'filename' meant?"),
        ("metadata.jsonl", "[" * 100_000, "line 1, is no JSON"),
        ("metadata.csv", "file,text\na.png,x\n", "line 2, has no 'file_name'"),
        ("metadata.csv", "file_name,text\na.png,x,y\n", "more cells than the first line"),
        ("a.txt", b"\xff\x00\xff", "a.txt' is no text in UTF-8"),
    ],
)
def test_what_is_malformed_is_named(tmp_path, name, text, message):
    tile(tmp_path / "a.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in (open_pictures, open_image_set, lambda folder: load_table(str(folder))):
        with pytest.raises(ValueError, match=message):
            reader(tmp_path)


def test_lists_and_nothing_in_tables(tmp_path):
    image = [{"bytes": png(), "path": "x/a.webp"}] * 3
    columns = {"image": image, "text": [["a", "b"], [], None], "label": [["c"], None, ["c", "d"]]}
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "t.parquet"))
    assert read(tmp_path / "t.parquet") == [
        ("x/a.webp", "a, b", "c"),
        ("x/a.webp", None, None),
        ("x/a.webp", None, "c, d"),
    ]


def test_class_names_come_with_numbers(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [{"bytes": png(), "path": None}] * 3, "label": [1, 0, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "t.parquet"))
    assert [label for _, _, label in read(tmp_path / "t.parquet")] == ["dog", "cat", None]
    named = datasets.Dataset.from_dict(columns, features=features).data.table
    beyond = named.set_column(1, named.schema.field("label"), pyarrow.array([1, 0, 7]))
    pyarrow.parquet.write_table(beyond, tmp_path / "beyond.parquet")
    with pytest.raises(ValueError, match="'label' holds class 7, but names 2"):
        read(tmp_path / "beyond.parquet")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"photo": [b"x"], "mask": [b"x"]}, "could be 'photo' or 'mask'; say which with `image`"),
        ({"image": [b"x"], "caption": ["a"], "prompt": ["b"]}, "'caption' and 'prompt' could be meant; .*`caption`"),
        ({"image": [b"x"], "text": ["a"], "caption": ["b"]}, "'text' and 'caption' could be meant; .*`caption`"),
        ({"image": [b"x"], "title": ["a"], "Description": ["b"]}, "'Description' and 'title' could be .*`caption`"),
        ({"image": [b"x"] * 2, "class": ["a", "a"], "category": ["b", "c"]}, "'class' and 'category' could .*`label`"),
        ({"image": [b"x"] * 2, "label": [0, 1], "target": [3, 3]}, "'label' and 'target' could be meant; .*`label`"),
    ],
)
def test_what_cannot_be_decided_is_asked(tmp_path, columns, message):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message):
        open_pictures(tmp_path / "t.parquet")
    argument = message.split("`")[1]
    chosen = {argument: list(columns)[-1]}
    assert len(open_pictures(tmp_path / "t.parquet", **chosen)) == len(columns[list(columns)[0]])


def test_columns_that_say_the_same_are_no_question(tmp_path):
    columns = {
        "image": [png()] * 3, "label": [0, 1, 0], "class_name": ["cat", "dog", "cat"],
        "text": ["a", "b", "c"], "caption": ["a", "b", "c"],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert [(caption, label) for _, caption, label in read(tmp_path / "t.parquet")] == [
        ("a", "cat"), ("b", "dog"), ("c", "cat"),
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"image": [png()], "title": ["one"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[0][1] == "one"


@pytest.mark.parametrize(
    "first, second, argument",
    [
        ({"text": "a", "caption": "b"}, {"text": "c", "caption": "d"}, "caption"),
        ({"prompt": "a", "alt": "b"}, {"prompt": "c", "alt": "d"}, "caption"),
        ({"label": "a", "class": "b"}, {"label": "a", "class": "c"}, "label"),
        ({"Category": "a", "target": "b"}, {"Category": "a", "target": "c"}, "label"),
    ],
)
def test_metadata_of_a_folder_is_asked_like_a_table(tmp_path, first, second, argument):
    rows = [{"file_name": f"{name}.png"} | row for name, row in zip("ab", (first, second))]
    for row in rows:
        (tmp_path / row["file_name"]).write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=f"could be meant; say which with `{argument}`"):
        open_pictures(tmp_path)
    for column in first:
        pictures = open_pictures(tmp_path, **{argument: column})
        assert getattr(pictures, f"{argument}s") == [first[column], second[column]]


def test_what_goes_over_what_is_said(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png())
    (tmp_path / "cat/a.txt").write_text("beside")
    rows = [{"file_name": "cat/a.png", "label": "x", "text": "one"}, {"file_name": "dog/b.png", "label": "x"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures = open_pictures(tmp_path)
    assert (pictures.captions, pictures.labels) == (["one", None], ["x", "x"])
    assert [note.split(";")[0] for note in pictures.notes] == [
        "Classes come from the metadata ('label'), not from the folders, which part otherwise.",
        "1 pictures have a caption in the metadata and in a file beside them",
    ]


def test_a_column_of_bytes_by_another_name(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"photo": [png()], "n": [1]}), tmp_path / "t.parquet")
    assert open_pictures(tmp_path / "t.parquet")[0].image.shape == (4, 6, 3)


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards(tmp_path):
    members = {
        "a.jpg": png(), "a.seg.png": png(), "a.txt": b"\xef\xbb\xbfone\n", "a.cls": b"3",
        "photo.2024.png": png(), "photo.2024.txt": b"two", "photo.2024.cls": b"4",
        "._a.jpg": b"\0", "__MACOSX/x.png": b"\0", "d/B.PNG": png(), "readme.md": b"",
    }  # fmt: skip
    pictures = open_pictures(shard(tmp_path / "s.tar", members))
    assert [(p.name, p.caption, p.label) for p in pictures] == [
        ("s.tar:a.jpg", "one", "3"),
        ("s.tar:d/B.png", None, None),
        ("s.tar:photo.2024.png", "two", "4"),
    ]
    assert {name for name, _ in pictures.skipped} == {
        "s.tar:._a.jpg", "s.tar:__MACOSX/x.png", "s.tar:a.seg.png", "s.tar:readme.md",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[" * 100_000, b"\xff"])
def test_damaged_values_of_shards_are_named(tmp_path, content):
    with pytest.raises(ValueError, match="s.tar:a.png' has a .json that"):
        list(open_pictures(shard(tmp_path / "s.tar", {"a.png": png(), "a.json": content})))


def test_bombs_and_cut_files(tmp_path):
    tile(tmp_path / "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        whole = io.BytesIO()
        Image.fromarray(noise).save(whole, format={"png": "PNG", "jpg": "JPEG"}[suffix])
        (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "empty.gif").write_bytes(b"")
    tile(tmp_path / "bomb.png", 0, (20_000, 20_000), mode="1")
    pictures = open_pictures(tmp_path)
    assert [picture.name for picture in pictures] == ["good.png"]
    reasons = dict(pictures.skipped)
    assert set(reasons) == {"cut.png", "cut.jpg", "empty.gif", "bomb.png"}
    assert "decompression bomb" in reasons["bomb.png"] and "truncated" in reasons["cut.jpg"]


def test_it_is_a_sequence(tmp_path):
    for number in range(3):
        tile(tmp_path / f"{number}.png", (number, 0, 0))
    pictures = open_pictures(tmp_path)
    assert pictures[-1].name == "2.png" and [p.name for p in pictures[1:]] == ["1.png", "2.png"]
    with pytest.raises(IndexError):
        pictures[3]
    pictures[0].image[:] = 0  # its own copy


@pytest.mark.parametrize("name", ["nowhere", "a.txt"])
def test_sources_that_are_none(tmp_path, name):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="`source` is .*which is"):
        open_pictures(tmp_path / name)
    tile(tmp_path / "pictures" / "a.png")
    with pytest.raises(ValueError, match="pictures' meant?"):
        open_pictures(tmp_path / "picture")
    assert read(tmp_path / "pictures" / "a.png") == [("a.png", None, None)]


def test_a_picture_without_content():
    with pytest.raises(BrokenPicture, match="there is no picture"):
        open_upright({"bytes": None, "path": None})
    with pytest.raises(BrokenPicture):
        to_rgb(open_upright(png()[:50]))


@pytest.mark.skipif(not ODD.is_dir(), reason="the collection of odd pictures is not here")
def test_the_collection_of_odd_pictures():
    grey = open_pictures(ODD / "deep_modes")[0].image
    raw = np.asarray(Image.open(ODD / "deep_modes" / "grey16.png")).astype(float)
    assert (grey == np.rint(raw / 257)[..., None]).all() and grey.max() == 255 and grey.min() == 0
    phone = open_pictures(ODD / "rotated")[0].image
    assert phone.shape == (96, 64, 3) and phone[:, -1, 0].min() > phone[:, 0, 0].max()
    assert len(open_pictures(ODD / "split_words")) == 6 == len(load_table(str(ODD / "split_words")))
    assert len(open_pictures(ODD / "stray_files")) == 4 == len(open_image_set(ODD / "stray_files"))
    assert [p.caption for p in open_pictures(ODD / "captions_txt")] == ["a red tile", "a green tile, glossy"]
    assert [p.caption for p in open_pictures(ODD / "metadata_bom")] == ["tile 0", "tile 1"]
    for picture in open_pictures(ODD / "alpha"):
        assert picture.image[0, 0].tolist() == [255, 255, 255] and picture.image.min() == 0
