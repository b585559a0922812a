"""Small replicas of the archives that TFDS's builders read: real layouts and names, made-up images.

`make(name, folder)` writes the archives of a data set into a folder and returns what a preparation
of it should give. What the builders do not read (licences, readme files, the other folds) is there
where the real archives have it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from xtra_jax.data.prepare.catalogue import CATALOGUE, Archive, DataSet


@dataclass(frozen=True)
class Sample:
    """One expected image; `label` is a class's name, or empty for an image without a label."""

    label: str
    pixels: np.ndarray  # uint8 [height, width, 3]
    exact: bool = True


@dataclass(frozen=True)
class Replica:
    """The archives' data set with their counts and checksums, and its images by split."""

    dataset: DataSet
    splits: dict[str, list[Sample]]


def make(name: str, folder: Path) -> Replica:
    """Writes the archives of the data set `name` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = MAKERS[name](folder, Pictures())
    files = {
        path.name: Archive(
            path.name,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.iterdir()
    }
    known = CATALOGUE[name]
    dataset = replace(
        known,
        images={split: len(samples) for split, samples in splits.items()},
        size=1,
        manual=tuple(
            replace(archive, size=files[archive.name].size, sha256=files[archive.name].sha256)
            for archive in known.manual
        ),
        recorded=tuple(
            file
            for name, file in files.items()
            if name not in {archive.name for archive in known.manual}
        ),
    )
    return Replica(dataset, splits)


class Pictures:
    """Makes pictures no two of which are alike."""

    def __init__(self):
        self._rng = np.random.default_rng(0)

    def pixels(self, height: int, width: int) -> np.ndarray:
        coarse = self._rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def file(self, height=48, width=64, form="JPEG", mode="RGB") -> bytes:
        picture = Image.fromarray(self.pixels(height, width)).convert(mode)
        encoded = io.BytesIO()
        picture.save(encoded, form, **({"quality": 95} if form == "JPEG" else {}))
        return encoded.getvalue()


def _sample(label: str, file: bytes, exact: bool = True) -> Sample:
    return Sample(label, np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), exact)


def _tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """Returns a tar of files with the folders above them, as GNU tar makes it."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents if parent.name}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name in (*sorted(folders), *files):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.REGTYPE if name in files else tarfile.DIRTYPE
            entry.size = len(files.get(name, b""))
            tar.addfile(entry, io.BytesIO(files.get(name, b"")))
    return buffer.getvalue()


def _zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for folder in sorted({f"{Path(name).parent.as_posix()}/" for name in files}):
            archive.writestr(folder, b"")
        for name, data in files.items():
            archive.writestr(name, data)


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _names_known_to_tfds(file: str) -> list[str]:
    return tfds.core.tfds_path(file).read_text().split("\n")


def cifar10(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    names = ["airplane", "automobile", "bird", "cat", "deer"]
    names += ["dog", "frog", "horse", "ship", "truck"]
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    files = {
        # The real one ends in an empty line.
        "cifar-10-batches-bin/batches.meta.txt": _lines(*names, ""),
        "cifar-10-batches-bin/readme.html": b"<html></html>\n",
    }
    batches = [(f"data_batch_{number}", "train") for number in range(1, 6)]
    for batch, split in [*batches, ("test_batch", "test")]:
        records = b""
        for index in range(4):
            label = (3 * index + ord(batch[-1])) % 10
            pixels = pictures.pixels(32, 32)
            records += bytes([label]) + pixels.transpose(2, 0, 1).tobytes()
            splits[split].append(Sample(names[label], pixels))
        files[f"cifar-10-batches-bin/{batch}.bin"] = records
    (folder / "cifar-10-binary.tar.gz").write_bytes(_tar(files))
    return splits


def cifar100(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    fine = [f"fine_{number:02d}" for number in range(100)]
    coarse = [f"coarse_{number:02d}" for number in range(20)]
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    files = {
        "cifar-100-binary/coarse_label_names.txt": _lines(*coarse),
        "cifar-100-binary/fine_label_names.txt": _lines(*fine),
    }
    for split, number in (("train", 9), ("test", 4)):
        records = b""
        for index in range(number):
            label = (index * 37 + number) % 100
            pixels = pictures.pixels(32, 32)
            records += bytes([label % 20, label]) + pixels.transpose(2, 0, 1).tobytes()
            splits[split].append(Sample(fine[label], pixels))
        files[f"cifar-100-binary/{split}.bin"] = records
    (folder / "cifar-100-binary.tar.gz").write_bytes(_tar(files))
    return splits


def food101(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {"train": [], "validation": []}
    files = {"food-101/license_agreement.txt": b"", "food-101/README.txt": b""}
    names: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label in ("apple_pie", "baby_back_ribs", "waffles"):
        for index in range(4):
            # Three quarters train; TFDS calls the test images validation.
            listed, split = ("test", "validation") if index == 3 else ("train", "train")
            name = f"{label}/{1005649 + 17 * index}"
            file = pictures.file()
            files[f"food-101/images/{name}.jpg"] = file
            names[listed].setdefault(label, []).append(name)
            splits[split].append(_sample(label, file))
    for listed, by_label in names.items():
        flat = [name for labelled in by_label.values() for name in labelled]
        files[f"food-101/meta/{listed}.json"] = json.dumps(by_label).encode()
        files[f"food-101/meta/{listed}.txt"] = _lines(*flat)
    (folder / "food-101.tar.gz").write_bytes(_tar(files))
    return splits


def dtd(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    files = {"dtd/imdb/imdb.mat": b"", "dtd/labels/labels_joint_anno.txt": b""}
    listed: dict[str, list[str]] = {}
    published = {"train": "train", "val": "validation", "test": "test"}
    for label in ("banded", "blotchy", "zigzagged"):
        for index, (part, split) in enumerate(published.items()):
            name = f"{label}/{label}_{index + 1:04d}.jpg"
            file = pictures.file()
            files[f"dtd/images/{name}"] = file
            splits[split].append(_sample(label, file))
            listed.setdefault(f"{part}1", []).append(name)
            # The second fold has them in other splits, and must not be read.
            listed.setdefault(f"{list(published)[(index + 1) % 3]}2", []).append(name)
    for part, names in listed.items():
        files[f"dtd/labels/{part}.txt"] = _lines(*names)
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(
        _tar(files, "w")
    )  # a plain tar, whatever its name says
    return splits


def oxford_iiit_pet(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    images, annotations = {}, {"annotations/README": b"", "annotations/list.txt": b"# comment\n"}
    listed: dict[str, list[str]] = {"trainval": [], "test": []}
    animals = (  # class from 1, species: 1 is a cat, 2 a dog
        ("Abyssinian", 1, 1, ("1", "2", "34")),  # TFDS encodes number 34 anew
        ("american_bulldog", 2, 2, ("100", "101")),
        ("yorkshire_terrier", 37, 2, ("7", "8")),
    )
    for name, label, species, numbers in animals:
        for number in numbers:
            listing, split = ("test", "test") if number == numbers[-1] else ("trainval", "train")
            stem = f"{name}_{number}"
            file = pictures.file()
            images[f"images/{stem}.jpg"] = file
            listed[listing].append(f"{stem} {label} {species} 1")
            annotations[f"annotations/trimaps/{stem}.png"] = pictures.file(form="PNG", mode="L")
            annotations[f"annotations/trimaps/._{stem}.png"] = b"left by a file manager"
            if split == "train":
                annotations[f"annotations/xmls/{stem}.xml"] = _HEAD.encode()
            splits[split].append(_sample(name, file, exact=stem != "Abyssinian_34"))
    for listing, lines in listed.items():
        annotations[f"annotations/{listing}.txt"] = _lines(*lines)
    (folder / "images.tar.gz").write_bytes(_tar(images, "w"))
    (folder / "annotations.tar.gz").write_bytes(_tar(annotations, "w"))
    return splits


_HEAD = (
    "<annotation><size><width>64</width><height>48</height><depth>3</depth></size><object>"
    "<name>cat</name><bndbox><xmin>8</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    "</object></annotation>"
)


def cars196(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    from scipy import io as matlab
    from tensorflow_datasets.image_classification import cars196 as builder

    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    annotations = {}
    for split, labels in (("train", (1, 14, 14, 196)), ("test", (2, 14, 195))):
        files = {}
        rows = np.zeros((1, len(labels)), dtype=[(name, object) for name in fields])
        for index, label in enumerate(labels):
            name = f"{index + 1:05d}.jpg"
            file = pictures.file()
            files[f"cars_{split}/{name}"] = file
            rows[0, index] = (*np.uint16([4, 5, 60, 40]), np.uint8(label), name)
            splits[split].append(_sample(builder._NAMES[label - 1], file))
        (folder / f"cars_{split}.tgz").write_bytes(_tar(files))
        buffer = io.BytesIO()
        matlab.savemat(buffer, {"annotations": rows})
        annotations[split] = buffer.getvalue()
    (folder / "cars_test_annos_withlabels.mat").write_bytes(annotations["test"])
    devkit = {
        "devkit/cars_train_annos.mat": annotations["train"],
        "devkit/cars_meta.mat": b"",
        "devkit/README.txt": b"",
    }
    (folder / "car_devkit.tgz").write_bytes(_tar(devkit))
    return splits


def eurosat(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    files, samples = {}, []
    for label in ("AnnualCrop", "HerbaceousVegetation", "SeaLake"):
        for index in range(1, 5):
            file = pictures.file(64, 64)
            files[f"2750/{label}/{label}_{index}.jpg"] = file
            samples.append(_sample(label, file))
    _zip(folder / "EuroSAT.zip", files)
    return {"train": samples}


def patch_camelyon(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    import h5py

    splits = {}
    parts = (("train", "train", 6), ("valid", "validation", 3), ("test", "test", 4))
    for part, split, number in parts:
        images = np.stack([pictures.pixels(96, 96) for _ in range(number)])
        labels = np.arange(number, dtype=np.uint8).reshape(number, 1, 1, 1) % 2
        for key, values in (("x", images), ("y", labels)):
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file[key] = values
            name = f"camelyonpatch_level_2_split_{part}_{key}.h5.gz"
            (folder / name).write_bytes(gzip.compress(buffer.getvalue()))
        splits[split] = [
            Sample(str(int(label)), image)
            for image, label in zip(images, labels.ravel(), strict=True)
        ]
    return splits


def i_naturalist2018(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    root = "image_classification/i_naturalist2018"
    names = _names_known_to_tfds(f"{root}/inaturalist2018_labels.txt")[:6]
    supers = _names_known_to_tfds(f"{root}/inaturalist2018_supercategories.txt")
    # The published names are hidden in train2018.json, and come with categories.json.
    hidden = [{"id": i, "name": str(i), "supercategory": supers[i]} for i in range(6)]
    shown = [{"id": i, "name": names[i], "supercategory": supers[i]} for i in range(6)]
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    images = {}
    for part, split, labels in (
        ("train", "train", (0, 3, 5, 3)),
        ("val", "validation", (5, 1)),
    ):
        rows, annotations = [], []
        for index, label in enumerate(labels):
            stem = hashlib.md5(f"{part}{index}".encode()).hexdigest()
            path = f"train_val2018/{supers[label]}/{label}/{stem}.jpg"
            number = 1000 * len(part) + index
            images[path] = pictures.file()
            rows.append({"id": number, "file_name": path, "width": 64, "height": 48})
            annotations.append({"id": number, "image_id": number, "category_id": label})
            splits[split].append(_sample(names[label], images[path]))
        listing = {"images": rows, "annotations": annotations, "categories": hidden}
        file = {f"{part}2018.json": json.dumps(listing).encode()}
        (folder / f"{part}2018.json.tar.gz").write_bytes(_tar(file))
    (folder / "train_val2018.tar.gz").write_bytes(_tar(images))
    categories = {"categories.json": json.dumps(shown).encode()}
    (folder / "categories.json.tar.gz").write_bytes(_tar(categories))
    unlabelled = {f"test2018/{index:032x}.jpg": pictures.file() for index in range(3)}
    splits["test"] = [_sample("", file) for file in unlabelled.values()]
    (folder / "test2018.tar.gz").write_bytes(_tar(unlabelled))
    return splits


def infograph(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    files, lines = {}, {"train": [], "test": []}
    for number, label in ((0, "aircraft_carrier"), (1, "airplane"), (344, "zigzag")):
        for index in range(1, 5):
            split = "test" if index == 4 else "train"
            name = f"infograph/{label}/infograph_{number + 1:03d}_{index:06d}.jpg"
            files[name] = pictures.file(80, 40)
            lines[split].append(f"{name} {number}")
            splits[split].append(_sample(label, files[name]))
    _zip(folder / "infograph.zip", files)
    for split, listed in lines.items():
        (folder / f"infograph_{split}.txt").write_bytes(_lines(*listed))
    return splits


def imagenet2012(folder: Path, pictures: Pictures) -> dict[str, list[Sample]]:
    splits: dict[str, list[Sample]] = {"train": [], "validation": []}
    synsets: dict[str, dict[str, bytes]] = {}
    for name in ("n01440764_10026", "n01440764_10027", "n15075141_54"):
        synsets.setdefault(name[:9], {})[f"{name}.JPEG"] = pictures.file()
    # The published images have one PNG and 22 CMYK JPEGs, which TFDS converts.
    synsets["n02105855"] = {"n02105855_2933.JPEG": pictures.file(form="PNG")}
    synsets["n02447366"] = {"n02447366_23489.JPEG": pictures.file(mode="CMYK")}
    for label, files in synsets.items():
        exact = label not in ("n02105855", "n02447366")
        splits["train"] += [_sample(label, file, exact) for file in files.values()]
    tars = {f"{label}.tar": _tar(files, "w") for label, files in synsets.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(tars, "w"))
    labels = _names_known_to_tfds("datasets/imagenet2012/validation_labels.txt")
    images = {f"ILSVRC2012_val_{number:08d}.JPEG": pictures.file() for number in range(1, 5)}
    splits["validation"] = [
        _sample(label, file) for label, file in zip(labels, images.values(), strict=False)
    ]
    # The published tar is not in the order of the names, by which the labels go.
    shuffled = dict(reversed(images.items()))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(shuffled, "w"))
    return splits


MAKERS = {
    "imagenet2012": imagenet2012,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "food101": food101,
    "dtd": dtd,
    "oxford_iiit_pet": oxford_iiit_pet,
    "cars196": cars196,
    "eurosat/rgb": eurosat,
    "patch_camelyon": patch_camelyon,
    "i_naturalist2018": i_naturalist2018,
    "domainnet/infograph": infograph,
}
