"""Every kind of set gives the same pictures; bad pictures are refused, counted and named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from brickwork.eval.sets.pictures import Preparation, decode, decode_ahead, inspect_images, open_image_set

EMOJI = Path(__file__).parents[2] / "data" / "emoji" / "sample.parquet"


def encoded(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def all_pixels(images, preparation=None):
    preparation = preparation or Preparation()
    return decode(images, range(len(images)), preparation, inspect_images(images, preparation).size)


@pytest.fixture
def sources(pixels, tmp_path, write_folder):
    pixels = pixels[:6]
    np.savez(tmp_path / "set.npz", pixels)
    rows = [{"bytes": encoded(picture), "path": None} for picture in pixels]
    table = pyarrow.table({"image": rows, "text": [f"picture {i}" for i in range(6)], "label": list(range(6))})
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for i, picture in enumerate(pixels):
            for name, content in ((f"{i:04d}.png", encoded(picture)), (f"{i:04d}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    folder = write_folder(pixels)
    lines = [{"file_name": f"{i:04d}.png", "text": f"picture {i}", "label": i} for i in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [folder, *(tmp_path / f"set.{suffix}" for suffix in ("npz", "parquet", "tar"))]


def test_all_kinds_of_sets_give_the_same_pictures_and_hashes(sources, pixels):
    batches = [all_pixels(open_image_set(source)) for source in sources]
    for batch in batches:
        np.testing.assert_array_equal(batch.pixels.permute(0, 2, 3, 1).numpy(), pixels[:6])
        np.testing.assert_array_equal(batch.digests, batches[0].digests)
    assert len({bytes(digest) for digest in batches[0].digests.numpy()}) == 6


def test_captions_and_labels_come_along_and_a_limit_cuts_all(sources):
    for source in (sources[0], sources[2]):
        images = open_image_set(source, limit=4)
        assert len(images) == 4
        assert list(images.texts) == [f"picture {i}" for i in range(4)] and list(images.labels) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="limit: got 7, need 1 to 6"):
        open_image_set(sources[0], limit=7)


def test_the_next_batches_are_decoded_ahead_in_order(sources, pixels):
    images = open_image_set(sources[0])
    for count in (1, 2, 4):
        cuts = [range(i, min(i + count, 6)) for i in range(0, 6, count)]
        batches = list(decode_ahead(images, cuts, Preparation(), (20, 12)))
        assert [i for batch in batches for i in batch.indices] == list(range(6))
    assert list(decode_ahead(images, [], Preparation(), (20, 12))) == []


def test_mixed_sizes_are_refused_counted_and_named(write_folder, pixels):
    folder = write_folder(pixels[:5])
    Image.fromarray(pixels[0]).resize((9, 9)).save(folder / "small.png")
    with pytest.raises(
        ValueError, match=r"mixes 2 sizes \(9x9: 1 \(small.png\); 20x12: 5 \(0000.png, 0001.png, …\)\)"
    ):
        inspect_images(open_image_set(folder), Preparation())
    assert inspect_images(open_image_set(folder), Preparation(8)).size == (8, 8)


def test_grey_and_alpha_pictures_are_refused_or_converted_and_counted(write_folder, pixels):
    folder = write_folder(pixels[:3])
    Image.fromarray(pixels[0]).convert("L").save(folder / "grey.png")
    transparent = Image.new("RGBA", (20, 12), (255, 0, 0, 0))
    transparent.save(folder / "alpha.png")
    with pytest.raises(
        ValueError, match=r"2 of 5 .* not RGB \(alpha: 1 \(alpha.png\); grey: 1 \(grey.png\)\).*--convert"
    ):
        inspect_images(open_image_set(folder), Preparation())
    images = open_image_set(folder)
    assert inspect_images(images, Preparation(convert=True)).converted == {"alpha": 1, "grey": 1}
    batch = all_pixels(images, Preparation(convert=True))
    named = dict(zip(images.names, batch.pixels))
    assert named["alpha.png"].min() == 255  # transparent red lies on white
    assert (named["grey.png"][0] == named["grey.png"][2]).all()


def test_deep_pictures_are_not_squeezed_into_bytes(write_folder, pixels):
    folder = write_folder(pixels[:1])
    Image.fromarray(np.full((12, 20), 4000, dtype=np.uint16)).save(folder / "deep.png")
    with pytest.raises(ValueError, match=r"deep grey: 1 \(deep.png\).*pass --convert"):
        inspect_images(open_image_set(folder), Preparation())
    images = open_image_set(folder)
    assert all_pixels(images, Preparation(convert=True)).pixels[images.names.index("deep.png")].unique().tolist() == [
        16
    ]


def test_corrupt_pictures_are_refused_counted_and_named(write_folder, pixels):
    folder = write_folder(pixels[:3])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"2 \(empty.png, text.png\) of 5 .* cannot be decoded"):
        inspect_images(open_image_set(folder), Preparation())


def test_a_picture_cut_short_is_found_when_it_is_decoded(write_folder, pixels):
    folder = write_folder(pixels[:3])
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    (folder / "cut.png").write_bytes(encoded(noise)[:300])
    images = open_image_set(folder)
    batch = decode(images, range(4), Preparation(), inspect_images(images, Preparation()).size)
    assert batch.corrupt == ["cut.png"]


def test_preparation_takes_the_centre_square(tmp_path):
    picture = np.zeros((40, 100, 3), dtype=np.uint8)
    picture[:, 15:85] = 200  # wider than the square by the reach of the filters
    for filter in ("lanczos", "bicubic", "box"):
        prepared = Preparation(10, filter)(Image.fromarray(picture))
        assert prepared.shape == (10, 10, 3) and prepared.min() == 200
    assert Preparation()(Image.fromarray(picture)).shape == (40, 100, 3)


@pytest.mark.parametrize(
    "arguments, message", [((0,), "resolution: got 0"), ((8, "lanzos"), "did you mean 'lanczos'")]
)
def test_wrong_preparation_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preparation(*arguments)


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="which is not there"):
        open_image_set(tmp_path / "none")
    with pytest.raises(ValueError, match="a folder without pictures"):
        open_image_set(tmp_path)
    np.savez(tmp_path / "flat.npz", np.zeros((4, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\), need \(count, height, width, 3\)"):
        open_image_set(tmp_path / "flat.npz")
    np.savez(tmp_path / "range.npz", np.full((1, 8, 8, 3), 127.0))
    with pytest.raises(ValueError, match="outside"):
        open_image_set(tmp_path / "range.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="cannot be read as an .npz"):
        open_image_set(tmp_path / "broken.npz")
    pyarrow.parquet.write_table(pyarrow.table({"picture": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is none of picture; say which"):
        open_image_set(tmp_path / "other.parquet")


def test_real_emoji_are_read():
    images = open_image_set(EMOJI)
    assert len(images) == 108 and images.texts[0] == "anguished face"
    assert inspect_images(images, Preparation()).size == (64, 64)
