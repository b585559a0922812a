"""What is known of every data set that can be prepared: counts, classes, sizes, and where from.

The counts and the checksums are those of TFDS 4.9.10 and of its published catalogue; of WILDS 2.0.0
and its paper (arXiv 2012.07421, appendix E); and of the pages named with each set. None of TFDS's
builders used here gets by without TensorFlow: eight read their files through `tf.io.gfile`, the
Oxford pets and PatchCamelyon encode images with it, and Food-101 needs it because its images
exceed the 1 GB that TFDS shuffles in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

How = Literal["ours", "stock", "stock+tensorflow"]


@dataclass(frozen=True)
class Archive:
    """A file that a data set is made from.

    Attributes:
        name: its exact file name. One that ends in "/" is a folder with what was unpacked.
        source: the site or page that has it, in words.
        url: the address of that page or of the file; empty where there is none to rely on.
        size: in bytes; 0 where it is not known or copies differ.
        sha256: in hexadecimal; empty where it is not known or copies differ.
        folder: the folder that unpacking it gives, which is taken in its place when it is there.
    """

    name: str
    source: str = ""
    url: str = ""
    size: int = 0
    sha256: str = ""
    folder: str = ""


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: as `data.dataset` takes it, which for TFDS's is TFDS's name.
        images: how many images each split has, by the names of the splits on disk.
        classes: how many classes the labels have.
        size: bytes that the prepared set takes, roughly.
        how: by our own builder, or by the one of TFDS with or without TensorFlow.
        manual: the files that have to be fetched by hand, into the folder of archives.
        recorded: files that are downloaded, where TFDS's package leaves out their checksums.
        note: what a user should know before starting; a sentence or more, or empty.
    """

    name: str
    images: dict[str, int]
    classes: int
    size: int
    how: How
    manual: tuple[Archive, ...] = ()
    recorded: tuple[Archive, ...] = field(default=(), repr=False)
    note: str = ""

    def difference(self, images: dict[str, int]) -> str:
        """Says which splits have another number of images than is known; empty where none has."""
        return " and ".join(
            f"{images.get(split, 0):,} images for {split} where {known:,} are known"
            for split, known in self.images.items()
            if images.get(split, 0) != known
        )


_KB, _MB, _GB = 10**3, 10**6, 10**9
_STOCK: How = "stock+tensorflow"
_IMAGENET = "https://image-net.org/download-images"
_INATURALIST = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_CARS_THREAD = "https://github.com/pytorch/vision/issues/7545"
_CARS_KAGGLE = "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset"


def _wilds(name: str, version: str) -> tuple[Archive, ...]:
    return (
        Archive(
            f"{name}_v{version}/",
            "the WILDS benchmark, as its package downloads and unpacks it with "
            f"`wilds.get_dataset(dataset='{name}', download=True, root_dir=...)`",
            "https://wilds.stanford.edu/datasets/",
        ),
    )


_SETS = (
    DataSet(
        "imagenet2012",
        {"train": 1_281_167, "validation": 50_000},
        1000,
        155 * _GB,
        _STOCK,
        manual=(
            Archive(
                "ILSVRC2012_img_train.tar",
                "the download page of ImageNet, after registering, ILSVRC2012, Task 1 and 2",
                _IMAGENET,
                147_897_477_120,
                "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
            ),
            Archive(
                "ILSVRC2012_img_val.tar",
                "the download page of ImageNet, after registering, ILSVRC2012, validation images "
                "(all tasks)",
                _IMAGENET,
                6_744_924_160,
                "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
            ),
        ),
        note="ILSVRC2012_img_test.tar, if it lies there too, becomes a split without labels.",
    ),
    DataSet(
        "imagenet21k",
        {"train": 13_153_500},
        19_167,
        1_200 * _GB,
        "ours",
        manual=(
            Archive(
                "winter21_whole/",
                "the download page of ImageNet, after registering, ImageNet21K, winter 2021 "
                "release: winter21_whole.tar.gz unpacked into one tar per synset, n00004475.tar "
                "and so on, which stay packed",
                _IMAGENET,
            ),
        ),
        note="It has no validation images of its own: validate on those of imagenet2012.",
    ),
    DataSet("cifar10", {"train": 50_000, "test": 10_000}, 10, 139 * _MB, _STOCK),
    DataSet("cifar100", {"train": 50_000, "test": 10_000}, 100, 138 * _MB, _STOCK),
    DataSet(
        "food101",
        {"train": 75_750, "validation": 25_250},
        101,
        5_120 * _MB,
        _STOCK,
        note="TFDS calls the published test images validation.",
    ),
    DataSet(
        "dtd",
        {"train": 1_880, "validation": 1_880, "test": 1_880},
        47,
        630 * _MB,
        _STOCK,
        note="The splits are the first of the ten published ones.",
    ),
    DataSet(
        "oxford_iiit_pet",
        {"train": 3_680, "test": 3_669},
        37,
        812 * _MB,
        _STOCK,
        note="The published trainval and test images; TFDS encodes twelve broken JPEGs anew.",
    ),
    DataSet(
        "cars196",
        {"train": 8_144, "test": 8_041},
        196,
        1_960 * _MB,
        _STOCK,
        manual=(
            Archive(
                "cars_train.tgz",
                "the Stanford Cars data set on Kaggle (by jessicali9530), whose folder cars_train "
                "does in its place",
                _CARS_KAGGLE,
                979_269_282,
                "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                "cars_train",
            ),
            Archive(
                "cars_test.tgz",
                "the Stanford Cars data set on Kaggle (by jessicali9530), whose folder cars_test "
                "does in its place",
                _CARS_KAGGLE,
                977_350_468,
                "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                "cars_test",
            ),
            Archive(
                "car_devkit.tgz",
                "the attachment to issue 7545 of pytorch/vision",
                "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",
                330_960,
                "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                "devkit",
            ),
            Archive(
                "cars_test_annos_withlabels.mat",
                "the Kaggle notebook that is linked in a comment on issue 7545 of pytorch/vision",
                _CARS_THREAD + "#issuecomment-1631441616",
                185_758,
                "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            ),
        ),
        note="The addresses at Stanford that TFDS knows no longer answer.",
    ),
    DataSet(
        "eurosat/rgb",
        {"train": 27_000},
        10,
        94 * _MB,
        _STOCK,
        note=(
            "TFDS has one split; ours train on train[:80%] and test on train[80%:], the 5,400 "
            "images on which VTAB tests."
        ),
    ),
    DataSet(
        "patch_camelyon",
        {"train": 262_144, "validation": 32_768, "test": 32_768},
        2,
        7_580 * _MB,
        _STOCK,
    ),
    DataSet(
        "i_naturalist2018",
        {"train": 437_513, "validation": 24_426, "test": 149_394},
        8_142,
        170 * _GB,
        _STOCK,
        recorded=(
            Archive(
                "train_val2018.tar.gz",
                url=_INATURALIST + "train_val2018.tar.gz",
                size=127_945_569_561,
                sha256="276522b02b65d98ee5168a17415b2b1ec971b035bd62959e37b80b1092130495",
            ),
            Archive(
                "test2018.tar.gz",
                url=_INATURALIST + "test2018.tar.gz",
                size=42_093_877_810,
                sha256="cb19d5b2d755e4dc2a2396a5371a847c95b08678aa00369e61365d7f1e486706",
            ),
            Archive(
                "train2018.json.tar.gz",
                url=_INATURALIST + "train2018.json.tar.gz",
                size=20_951_917,
                sha256="be550dd4e2692458e508dd03e3a8d79f087453e2ad570a438a4ff198a7abc68f",
            ),
            Archive(
                "val2018.json.tar.gz",
                url=_INATURALIST + "val2018.json.tar.gz",
                size=1_276_686,
                sha256="e23c47d61d3aa2a9095090dbc49de861445d9a8144884a78222873f11f7ef43e",
            ),
            Archive(
                "categories.json.tar.gz",
                url=_INATURALIST + "categories.json.tar.gz",
                size=139_473,
                sha256="2287211e8da582419dc2ca66736005fdb079e0a89eaf38936a441d8277a8162e",
            ),
        ),
        note="The test images have no published labels; TFDS's builder needs them all the same.",
    ),
    DataSet(
        "domainnet/infograph",
        {"train": 36_023, "test": 15_582},
        345,
        4_480 * _MB,
        _STOCK,
        recorded=(
            Archive(
                "infograph.zip",
                url=_DOMAINNET + "infograph.zip",
                size=4_338_659_804,
                sha256="891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa",
            ),
            Archive(
                "infograph_train.txt",
                url=_DOMAINNET + "domainnet/txt/infograph_train.txt",
                size=1_683_098,
                sha256="36b44cbd41a2915e0dc73b4f4be8862a6f3c220f93c8d63fb2439beeae3aefda",
            ),
            Archive(
                "infograph_test.txt",
                url=_DOMAINNET + "domainnet/txt/infograph_test.txt",
                size=728_028,
                sha256="413cfa54ac92e7e6b242f4f09fbd9c8ace85c4deaf3cb6c81ff6b68264460136",
            ),
        ),
        note="The cleaned version of DomainNet.",
    ),
    DataSet(
        "iwildcam",
        {"train": 129_809, "val": 14_961, "test": 42_791, "id_val": 7_314, "id_test": 8_154},
        182,
        12 * _GB,
        "ours",
        manual=_wilds("iwildcam", "2.0"),
        note="Version 2.0 of WILDS; val and test are out of distribution.",
    ),
    DataSet(
        "camelyon17",
        {"train": 302_436, "val": 34_904, "test": 85_054, "id_val": 33_560},
        2,
        10_700 * _MB,
        "ours",
        manual=_wilds("camelyon17", "1.0"),
        note="Version 1.0 of WILDS; val and test are hospitals that train has not.",
    ),
    DataSet(
        "rxrx1",
        {"train": 40_612, "val": 9_854, "test": 34_432, "id_test": 40_612},
        1_139,
        7_400 * _MB,
        "ours",
        manual=_wilds("rxrx1", "1.0"),
        note="Version 1.0 of WILDS; val and test are experiments that train has not.",
    ),
    DataSet(
        "fmow",
        {"train": 76_863, "val": 19_915, "test": 22_108, "id_val": 11_483, "id_test": 11_327},
        62,
        16 * _GB,
        "ours",
        manual=_wilds("fmow", "1.1"),
        note="Version 1.1 of WILDS; val and test are later years than train.",
    ),
    DataSet("digits", {"train": 1_442, "test": 355}, 10, 600 * _KB, "ours"),
)

CATALOGUE: dict[str, DataSet] = {dataset.name: dataset for dataset in _SETS}
