import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from xtra_jax.data.decode import decode
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


class Shades(tfds.core.GeneratorBasedBuilder):
    """Grey squares; record `i` of a split is `i` levels above the split's first."""

    VERSION = tfds.core.Version("2.0.0")
    code_path = None
    first = {"train": 0, "validation": 100}

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "mask": tfds.features.Image(encoding_format="png"),
            "file_name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.first}

    def _generate_examples(self, split):
        for i in range(20):
            image = Image.fromarray(np.full((4, 6, 3), self.first[split] + i, np.uint8))
            name = f"{split}/{i}.png"
            yield i, {"image": image, "mask": image, "file_name": name, "label": i % 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("tfds"))
    Shades(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def shades(source):
    return [int(decode(source[i]["image"])[0, 0, 0]) for i in range(len(source))]


def test_a_prepared_set_opens_by_name_with_its_classes(root):
    source = open_source("shades", "train", root)
    assert source.num_classes == 2
    assert source.class_names == ("even", "odd")
    record = source[3]
    assert decode(record["image"]).shape == (4, 6, 3)
    assert (record["label"], record["key"]) == (1, "train/3.png")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", list(range(20))),
        ("train[:90%]", list(range(18))),
        ("train[90%:]", [18, 19]),
        ("train[5:7]", [5, 6]),
        ("train+validation", [*range(20), *range(100, 120)]),
        ("validation[:2]+train[:1]", [100, 101, 0]),
    ],
)
def test_slices_and_sums_of_splits_are_read(root, split, expected):
    assert shades(open_source("shades", split, root)) == expected


def test_a_source_survives_pickling(root):
    source = open_source("shades", "train[:90%]", root)
    copy = pickle.loads(pickle.dumps(source))
    assert shades(copy) == shades(source)
    assert copy.class_names == source.class_names


def test_version_in_the_name_is_understood(root):
    assert len(open_source("shades:2.0.0", "train", root)) == 20


def test_a_set_that_is_not_prepared_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(UserError) as error:
        open_source("imagenet2012", "train", str(tmp_path))
    message = str(error.value)
    assert str(tmp_path) in message
    assert "xtra prepare --dataset imagenet2012" in message


@pytest.mark.parametrize(
    "dataset, told",
    [
        ("imagenet2021", r"knows none of that name \(did you mean imagenet2012\?\)"),
        ("eurosat", r"did you mean eurosat/rgb\?"),
        ("mnist", r"knows none of that name: .* that TFDS has prepared as array_record"),
        ("cifar10:9.9.9", "`xtra prepare --dataset cifar10 --data_dir"),
        ("fmow/max_side_512", "`xtra prepare --dataset fmow --max_side 512 --data_dir"),
    ],
)
def test_only_names_that_can_be_prepared_are_told_to_be(dataset, told, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        open_source(dataset, "train", str(tmp_path))
    assert ("xtra prepare --dataset" in str(error.value)) == told.startswith("`")


def test_a_folder_with_a_comma_in_its_path_is_told_where_to_put_it(tmp_path, encode):
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "1.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8)))
    told = "commas separate data sets, .* goes in data.data_dir, with data.dataset=folder"
    with pytest.raises(UserError, match=told):
        open_source(f"folder:{folder}", "all")
    assert len(open_source("folder", "all", str(folder))) == 1


def test_an_unknown_split_is_named_with_those_there_are(root):
    with pytest.raises(UserError, match=r"'test'.*its splits are train, validation"):
        open_source("shades", "test", root)


@pytest.mark.parametrize("split", ["", "train[", "train[:500]", "train[:0%]", "train[::2]"])
def test_a_split_that_cannot_be_read_is_a_user_error(root, split):
    with pytest.raises(UserError, match="its splits are train, validation"):
        open_source("shades", split, root)


def test_a_set_in_another_file_format_says_so(tmp_path):
    Shades(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    info = tmp_path / "shades" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="prepared as tfrecord"):
        open_source("shades", "train", str(tmp_path))


@pytest.mark.parametrize("dataset", ["", "not a name", "/some/path"])
def test_what_names_no_data_set_is_a_user_error(dataset, tmp_path):
    with pytest.raises(UserError, match="folder:/path/to/images"):
        open_source(dataset, "train", str(tmp_path))


def test_a_folder_opens_by_prefix_or_by_data_dir(tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8)))
    for dataset, data_dir in ((f"folder:{tmp_path}", ""), ("folder", str(tmp_path))):
        source = open_source(dataset, "all", data_dir)
        assert (len(source), source[0]["key"], source.num_classes) == (1, "a.png", None)


def test_a_folder_without_a_path_is_a_user_error():
    with pytest.raises(UserError, match="needs its path"):
        open_source("folder:", "train")
