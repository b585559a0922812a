"""The catalogue against the configs, and against what TFDS's package itself records."""

from __future__ import annotations

import re

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from configs import probe
from tests.data.prepare.stock_replicas import MAKERS
from xtra_jax.data.prepare.catalogue import CATALOGUE

BENCHMARKS = {benchmark.dataset or name: benchmark for name, benchmark in probe.BENCHMARKS.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_prepared_with_its_splits_and_classes(name):
    dataset, benchmark = CATALOGUE[name], BENCHMARKS[name]
    assert dataset.classes == benchmark.classes
    for split in (*benchmark.train_split.split("+"), benchmark.eval_split):
        assert re.sub(r"\[.*\]", "", split) in dataset.images


def test_the_catalogue_has_the_sets_and_no_other():
    assert set(CATALOGUE) == {*BENCHMARKS, "imagenet21k", "digits"}
    assert all(name == dataset.name for name, dataset in CATALOGUE.items())


def test_the_digits_are_counted_as_they_are_split(digits_dir):
    builder = tfds.builder_from_directory(f"{digits_dir}/digits/1.0.0")
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert CATALOGUE["digits"].images == counts


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("imagenet2012", "datasets/imagenet2012/labels.txt"),
        ("i_naturalist2018", "image_classification/i_naturalist2018/inaturalist2018_labels.txt"),
        ("food101", "image_classification/food-101_classes.txt"),
        ("dtd", "image_classification/dtd_key_attributes.txt"),
    ],
)
def test_the_classes_are_as_many_as_tfds_names(name, file):
    names = tfds.core.tfds_path(file).read_text().split()
    if name == "i_naturalist2018":  # names of species have blanks
        names = tfds.core.tfds_path(file).read_text().splitlines()
    assert CATALOGUE[name].classes == len([line for line in names if line])


@pytest.mark.parametrize("file", ["cars196", "imagenet2012"])
def test_files_fetched_by_hand_have_the_checksums_that_tfds_records(file):
    path = {
        "cars196": "url_checksums/cars196.txt",
        "imagenet2012": "datasets/imagenet2012/checksums.tsv",
    }[file]
    recorded = {
        url.rsplit("/", 1)[1]: (int(info.size), info.checksum)
        for url, info in checksums.load_url_infos(tfds.core.tfds_path(path)).items()
    }
    manual = {archive.name: (archive.size, archive.sha256) for archive in CATALOGUE[file].manual}
    assert manual == recorded


def test_the_validation_labels_of_imagenet_are_as_many_as_its_images():
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    assert CATALOGUE["imagenet2012"].images["validation"] == len(labels)


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_file_to_fetch_says_from_where(name):
    dataset = CATALOGUE[name]
    for archive in dataset.manual:
        assert archive.source and archive.url.startswith("https://")
    for archive in dataset.recorded:
        assert archive.url.endswith(f"/{archive.name}")
        assert archive.size and re.fullmatch("[0-9a-f]{64}", archive.sha256)
    names = [archive.name for archive in (*dataset.manual, *dataset.recorded)]
    assert len(names) == len(set(names))


def test_stock_sets_are_those_with_a_builder_in_tfds():
    stock = {name for name, dataset in CATALOGUE.items() if dataset.how != "ours"}
    assert stock == set(MAKERS)
    known = set(tfds.list_builders(with_community_datasets=False))
    assert {name.split("/")[0] for name in stock} <= known
    ours = {name for name in CATALOGUE if name not in stock and name != "digits"}
    assert ours.isdisjoint(known)
