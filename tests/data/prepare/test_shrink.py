"""`--max_side`: which images are shrunk, and to what."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.prepare.wilds_replicas import MAKERS
from xtra_jax.data.decode import decode
from xtra_jax.data.prepare.job import prepare
from xtra_jax.data.prepare.shrink import shrink
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((400, 300), 200, (200, 150)),
        ((300, 400), 200, (150, 200)),
        ((201, 200), 200, (200, 199)),
        ((401, 7), 200, (200, 3)),
        ((2000, 1), 200, (200, 1)),
    ],
)
def test_the_longer_side_becomes_the_limit(size, limit, expected, picture, encode):
    data = encode(picture(size[1], size[0]), "JPEG")
    result = shrink(data, limit)
    assert result.shrunk and not result.broken
    with Image.open(io.BytesIO(result.data)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", expected, "RGB")
        assert image.info.get("exif") is None


@pytest.mark.parametrize("size", [(200, 200), (200, 10), (1, 1)])
def test_images_within_the_limit_keep_their_bytes(size, picture, encode):
    data = encode(picture(size[1], size[0]), "JPEG", quality=30)
    assert shrink(data, 200).data is data and not shrink(data, 200).shrunk


def test_without_a_limit_nothing_is_looked_at():
    assert shrink(b"anything", 0).data == b"anything"


def test_the_result_is_the_antialiased_bicubic_resize_as_a_jpeg_of_quality_95(picture, encode):
    pixels = picture(360, 480)
    exact = Image.fromarray(pixels).resize((240, 180), Image.Resampling.BICUBIC)
    assert shrink(encode(pixels), 240).data == encode(exact, "JPEG", quality=95, subsampling=0)


def test_chroma_is_not_subsampled(picture, encode):
    data = shrink(encode(picture(360, 480)), 240).data
    with Image.open(io.BytesIO(data)) as image:
        assert {(horizontal, vertical) for _, horizontal, vertical, _ in image.layer} == {(1, 1)}


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_other_kinds_of_images_are_shrunk_as_training_decodes_them(mode, picture, encode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    if mode == "I;16":
        image = Image.fromarray(
            np.linspace(0, 65535, 300 * 400).astype(np.uint16).reshape(300, 400)
        )
    else:
        image = Image.fromarray(picture(300, 400)).convert(mode)
    data = encode(image, form)
    exact = Image.fromarray(decode(data)).resize((100, 75), Image.Resampling.BICUBIC)
    assert shrink(data, 100).data == encode(exact, "JPEG", quality=95, subsampling=0)


@pytest.mark.parametrize("damage", ["empty", "text", "header", "cut"])
def test_what_cannot_be_decoded_keeps_its_bytes_and_is_counted(damage, picture, encode):
    whole = encode(picture(300, 400), "JPEG")
    data = {"empty": b"", "text": b"text", "header": whole[:40], "cut": whole[: len(whole) // 2]}
    result = shrink(data[damage], 100)
    assert result.data == data[damage]
    assert result.broken and not result.shrunk


def test_a_cut_image_within_the_limit_is_left_to_training(picture, encode):
    data = encode(picture(60, 80), "JPEG")[:-500]
    assert shrink(data, 100) == shrink(data, 0)


@pytest.fixture
def fmow(archives, known_counts, picture, encode):
    """A replica in which some images are large, and one of these is cut."""
    expected = MAKERS["fmow"](archives)
    known_counts("fmow", {split: len(rows) for split, rows in expected.items()})
    folder = archives / "fmow_v1.1" / "images"
    (folder / "rgb_img_0.png").write_bytes(encode(picture(90, 120)))
    (folder / "rgb_img_3.png").write_bytes(encode(picture(90, 120))[:2000])
    return folder


def records(root, name, split):
    source = open_source(name, split, str(root))
    return [source[i] for i in range(len(source))], source


def files(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_a_set_of_ours_is_shrunk_while_it_is_written_and_has_a_name_of_its_own(
    fmow, archives, data_dir, capsys
):
    directory = prepare("fmow", str(data_dir), archives=str(archives), max_side=64, workers=1)
    assert directory == str(data_dir / "fmow" / "max_side_64" / "1.1.0")
    said = capsys.readouterr().err
    assert "fmow/max_side_64: 8 images" in said
    assert "1 of them shrunk to 64 pixels, 1 that cannot be decoded kept" in said
    train, source = records(data_dir, "fmow/max_side_64", "train")
    assert decode(train[0]["image"]).shape == (48, 64, 3)
    assert train[1]["image"] == (fmow / "rgb_img_10.png").read_bytes()
    assert [record["label"] for record in train] == [0, 60] and source.num_classes == 62
    val, _ = records(data_dir, "fmow/max_side_64", "val")
    assert val[0]["image"] == (fmow / "rgb_img_3.png").read_bytes()
    description = tfds.builder_from_directory(directory).info.description
    assert "more than 64 pixels (1 of 8)" in description and "quality 95, 4:4:4" in description
    with pytest.raises(UserError, match="was not found"):
        open_source("fmow", "train", str(data_dir))


def test_from_a_prepared_set_come_the_same_bytes_as_from_the_archives(fmow, archives, tmp_path):
    small = prepare("fmow", str(tmp_path / "a"), archives=str(archives), max_side=64, workers=1)
    original = prepare("fmow", str(tmp_path / "b"), archives=str(archives), workers=1)
    before = files(original)
    again = prepare("fmow", str(tmp_path / "b"), max_side=64, workers=1)  # without the archives
    assert files(again) == files(small)
    assert files(original) == before
    assert (
        records(tmp_path / "b", "fmow", "train")[0][0]["image"]
        == (fmow / "rgb_img_0.png").read_bytes()
    )


class Squares(tfds.core.GeneratorBasedBuilder):
    """As TFDS's own builders write: a config, other features beside, shuffled."""

    VERSION = tfds.core.Version("3.0.2")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="rgb", version="3.0.2")]
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "mask": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            side = 40 if i < 3 else 100
            image = Image.fromarray(np.full((side, side, 3), 20 * i, np.uint8))
            # As TFDS has it for test images whose labels are kept back.
            yield i, {"image": image, "mask": image, "label": i % 2 if i < 5 else -1}


def test_a_set_of_tfds_is_copied_with_smaller_images_under_another_config(
    data_dir, known_counts, monkeypatch
):
    monkeypatch.setattr(Squares, "name", "eurosat")
    Squares(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    known_counts("eurosat/rgb", {"train": 6})
    directory = prepare("eurosat/rgb", str(data_dir), max_side=64, workers=1)
    assert directory == str(data_dir / "eurosat" / "rgb_max_side_64" / "3.0.2")
    small, source = records(data_dir, "eurosat/rgb_max_side_64", "train")
    large, _ = records(data_dir, "eurosat/rgb", "train")
    assert source.class_names == ("even", "odd")
    assert sorted(record["label"] for record in small) == [-1, 0, 0, 0, 1, 1]
    for before, after in zip(large, small, strict=True):
        assert after["label"] == before["label"]
        level = decode(before["image"])[0, 0, 0]
        side = min(64, len(decode(before["image"])))
        np.testing.assert_allclose(decode(after["image"]), np.full((side, side, 3), level), atol=1)
        assert (after["image"] == before["image"]) == (side == 40)


class Named(Squares):
    """Names its images, by one feature or another."""

    BUILDER_CONFIGS = []
    feature = ""

    def _info(self):
        info = super()._info()
        named = {**info.features, self.feature: tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(named))

    def _generate_examples(self):
        for i, example in super()._generate_examples():
            yield i, {**example, self.feature: f"square {i}"}


@pytest.mark.parametrize("feature", ["file_name", "filename", "id"])
def test_a_smaller_copy_keeps_the_names_of_images(feature, data_dir, known_counts, monkeypatch):
    monkeypatch.setattr(Named, "name", "food101")
    monkeypatch.setattr(Named, "feature", feature)
    Named(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    known_counts("food101", {"train": 6})
    prepare("food101", str(data_dir), max_side=64, workers=1)
    names = [record["key"] for record in records(data_dir, "food101/max_side_64", "train")[0]]
    assert names == [record["key"] for record in records(data_dir, "food101", "train")[0]]
    assert sorted(names) == [f"square {i}" for i in range(6)]


@pytest.mark.parametrize("max_side", [-5, 1, 31])
def test_a_limit_that_must_be_a_slip_is_refused(max_side, data_dir):
    with pytest.raises(UserError, match="--max_side takes 32 pixels or more"):
        prepare("fmow", str(data_dir), max_side=max_side)
