"""The samples that a run sees, with their labels and crops, through the code that the run uses."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
from PIL import Image

from xtra_jax.data.ahead import BadRecord
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.decode import decode
from xtra_jax.data.erasing import random_erasing
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import random_crop
from xtra_jax.inspection.inputs import Inputs
from xtra_jax.model.grid import Grid
from xtra_jax.model.patches import denormalise_patches, normalise_patches, patchify, unpatchify

_erase = jax.jit(random_erasing)

_LARGEST_ORIGINAL = 512  # pixels; an original is kept no larger than it can be drawn


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image as the model sees it.

    Attributes:
        pixels: uint8 [size, size, 3], normalised and brought back; None where it is unusable.
        label: its class's name, its number where classes have no names, or "no label".
        key: what the source calls it.
        erased: (top, left, height, width) of the rectangle of noise in it, None without one.
        problem: why it is unusable.
    """

    pixels: np.ndarray | None
    label: str
    key: str
    erased: tuple[int, int, int, int] | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Crop:
    """What one random crop made of an image.

    Attributes:
        box: (top, left, height, width) in the original, pixels.
        mirrored: whether it was flipped.
        pixels: uint8 [size, size, 3], before normalisation and erasing.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Views:
    """An original and several crops of it.

    Attributes:
        original: uint8 [height, width, 3], perhaps made smaller.
        scale: its width over that of the image that was cropped.
        shape: (height, width) of the image that was cropped.
    """

    original: np.ndarray
    scale: float
    shape: tuple[int, int]
    label: str
    key: str
    crops: list[Crop]


class Unusable(BadImages):
    """Collects bad images without a word."""

    def __init__(self):
        super().__init__()
        self.records: dict[int, BadRecord] = {}

    def add(self, record: BadRecord) -> None:
        self.records.setdefault(record.index, record)


def train_samples(inputs: Inputs, count: int) -> list[Sample]:
    """The first samples of the run's first step, erased as they will be there."""
    batch, unusable = _first_batch(inputs, count)
    images = inputs.squares(batch)
    seen, erased = seen_by_the_model(images, inputs, first_step_key(inputs.config.seed))
    return _samples(inputs.train, batch, seen, erased, unusable)


def eval_samples(inputs: Inputs, count: int) -> list[Sample]:
    """Some held-out images, always the same ones of a set and spread over it."""
    source = inputs.evaluation
    order = np.random.default_rng(0).permutation(len(source))[:count]
    chosen = _Chosen(source, order)
    unusable = Unusable()
    (batch,) = eval_batches(
        chosen, inputs.eval_transform, batch_size=len(chosen), bad_images=unusable
    )
    seen, erased = seen_by_the_model(batch["image"], inputs, key=None)
    return _samples(chosen, batch, seen, erased, unusable)


def crop_views(inputs: Inputs, images: int, crops: int) -> list[Views]:
    """Several crops of each of the run's first images.

    The first is the one that the run begins with. The others are drawn as for the same place in
    later epochs. Crops are known exactly, because the generator that drew them is.
    """
    batch, _ = _first_batch(inputs, images)
    views = []
    for position, index in enumerate(batch["index"].tolist()):
        if batch["weight"][position] == 0:
            continue
        record = inputs.train[index]
        pixels = decode(record["image"])
        label = label_of(inputs.train, record["label"])
        positions = [position + epoch * len(inputs.train) for epoch in range(crops)]
        drawn = [draw_crop(inputs, pixels, each) for each in positions]
        original, scale = _shrunk(pixels)
        views.append(Views(original, scale, pixels.shape[:2], label, record["key"], drawn))
    return views


def draw_crop(inputs: Inputs, pixels: np.ndarray, position: int) -> Crop:
    """The crop of an image at a position in the sequence of training samples."""
    transform, seed = inputs.train_transform, inputs.config.seed
    seen = transform(pixels, np.random.default_rng((seed, position)))
    # The same generator again, for the draws that the transform begins with.
    rng = np.random.default_rng((seed, position))
    box = random_crop(*pixels.shape[:2], transform.scale, transform.ratio, rng)
    return Crop(box, bool(rng.random() < transform.flip), seen)


def seen_by_the_model(
    images: np.ndarray, inputs: Inputs, key: jax.Array | None
) -> tuple[np.ndarray, np.ndarray]:
    """What arrives in the model, as pictures.

    Args:
        images: uint8 [batch, size, size, 3].
        key: decides what is erased; None for nothing.

    Returns:
        uint8 [batch, size, size, 3], cut into patches, normalised, perhaps erased, and back; and
        what was erased, boolean [batch, size, size].
    """
    grid = inputs.grid
    patches = normalise_patches(patchify(images, grid), inputs.mean, inputs.std)
    pixels = unpatchify(patches, grid)
    erased = np.zeros(images.shape[:3], bool)
    if key is not None and inputs.erasing:
        noisy = _erase(key, pixels, probability=inputs.erasing)
        erased = np.asarray((noisy != pixels).any(axis=-1))
        patches = patchify(noisy, grid)
    return as_pictures(patches, grid, inputs.mean, inputs.std), erased


def as_pictures(patches, grid: Grid, mean, std) -> np.ndarray:
    """Normalised patches as uint8 images."""
    pixels = unpatchify(denormalise_patches(patches, mean, std), grid)
    return np.round(255 * pixels).astype(np.uint8)


def first_step_key(seed: int) -> jax.Array:
    """The key that a probe of this seed gives its augmentation on the device at step 0."""
    _, key = jax.random.split(jax.random.key(seed))
    return jax.random.fold_in(key, 0)


def label_of(source: Source, label: int) -> str:
    """A label as a person reads it."""
    if label < 0:
        return "no label"
    return source.class_names[label] if label < len(source.class_names) else str(label)


def _first_batch(inputs: Inputs, count: int) -> tuple[dict[str, np.ndarray], Unusable]:
    """The first samples of the run. They do not depend on the size of the batch."""
    unusable = Unusable()
    batches = train_batches(
        inputs.train,
        inputs.pipeline_transform,
        batch_size=count,
        seed=inputs.config.seed,
        prefetch=1,
        bad_images=unusable,
    )
    with contextlib.closing(batches):
        return next(batches), unusable


def _samples(source: Source, batch, seen, erased, unusable: Unusable) -> list[Sample]:
    samples = []
    for row, index in enumerate(batch["index"].tolist()):
        label = label_of(source, int(batch["label"][row]))
        bad = unusable.records.get(index)
        if bad is None:
            key = source[index]["key"]
            samples.append(Sample(seen[row], label, key, rectangle(erased[row])))
        else:
            samples.append(Sample(None, label, bad.key, problem=bad.reason))
    return samples


def rectangle(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of what is true in a mask [height, width]."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def _shrunk(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """An image no larger than it is drawn, and its scale."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST_ORIGINAL, _LARGEST_ORIGINAL), Image.Resampling.BICUBIC)
    return np.asarray(image), image.width / pixels.shape[1]


class _Chosen:
    """A few records of a source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._source[int(self._indices[index])]
