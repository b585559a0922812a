"""A small ImageNet-21k in the layout of its winter 2021 release: one tar of images per synset."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.data.prepare.wilds_replicas import picture

# Synsets as in the release, and numbers of images as they come in its tars: not sorted as text.
SYNSETS = {
    "n00004475": (6590, 15899, 32312, 35466),
    "n01440764": (18, 10026, 9981),
    "n02084071": (1, 2, 3, 4, 5),
    "n09229709": (7,),
}


def files_of(synset: str) -> list[str]:
    """Names of a synset's images, in the order of its tar."""
    return [f"{synset}_{number}.JPEG" for number in SYNSETS[synset]]


def image_of(file: str) -> bytes:
    seed = int(file[1:9]) + int(file[10:].split(".")[0])
    return picture(seed, (64, 48) if seed % 2 else (40, 30), "JPEG")


def expected(synsets=SYNSETS) -> list[tuple[str, int]]:
    """Files and labels, in the order of the records."""
    return [
        (file, label)
        for label, synset in enumerate(sorted(synsets))
        for file in sorted(files_of(synset))
    ]


def write_tars(folder: Path, synsets=SYNSETS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for synset in synsets:
        with tarfile.open(folder / f"{synset}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for file in files_of(synset):
                data = image_of(file)
                member = tarfile.TarInfo(file)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_folders(folder: Path, synsets=SYNSETS) -> None:
    for synset in synsets:
        (folder / synset).mkdir(parents=True)
        for file in files_of(synset):
            (folder / synset / file).write_bytes(image_of(file))
