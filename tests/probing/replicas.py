"""Small data sets in the layout of the prepared benchmarks: their names, splits and classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from xtra_jax.data.prepare.catalogue import CATALOGUE
from xtra_jax.data.prepare.metadata import Serializer, write_metadata
from xtra_jax.data.prepare.plan import Example, Plan

IMAGES = 10  # per split


def write_replica(dataset: str, data_dir: Path) -> None:
    """Writes a data set of the catalogue with ten images of noise per split.

    Labels go through all classes from the last one down, as far as there are images.
    """
    known = CATALOGUE[dataset]
    name, _, config = dataset.partition("/")
    classes = tuple(f"class {i}" for i in range(known.classes))
    splits = dict.fromkeys(known.images, ())
    plan = Plan(name, "1.0.0", splits, classes, "a replica", config, "png", file_names=False)
    directory = plan.directory(epath.Path(data_dir))
    directory.mkdir(parents=True)
    serialize = Serializer(classes, "png", False)
    shards = {}
    for number, split in enumerate(splits):
        rng = np.random.default_rng(number)
        file = directory / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        size = 0
        for i in range(IMAGES):
            record = serialize(Example(_noise(rng), known.classes - 1 - i % known.classes))
            writer.write(record)
            size += len(record)
        writer.close()
        shards[split] = [(IMAGES, size)]
    write_metadata(plan, directory, shards, plan.description)


def _noise(rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
