"""Batches of images in an order that depends only on the seed, the step and the global batch.

Training draws from one endless sequence of samples. Sample number `p` of seed `s` is record
`order(s)[p]`, a shuffle that differs in every epoch, transformed with random numbers that depend
on `s` and `p` alone. Step `t` reads samples `t * B` to `(t + 1) * B`. A batch is cut into shards of
consecutive rows, and each process reads those that its devices hold. So a run that starts at step
`t` continues exactly, whatever the number of devices, processes and workers before and after;
nothing but `t` has to be stored.

A batch is a dict of NumPy arrays:

    image   uint8   [rows, size, size, 3]
    label   int32   [rows], -1 where unknown
    weight  float32 [rows], 1, or 0 where the image could not be decoded or the row is padding
    index   int64   [rows], the record in the source, -1 for padding

and, where the accelerator is to resize, what `xtra_jax.data.device_resize` needs:

    box     int32   [rows, 3], the height and width of the crop in its canvas, and its flip
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from xtra_jax.data.ahead import BadRecord, Batch, Layout, make_in_threads
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.decode import BadImage, decode
from xtra_jax.data.mixture import MixedOrder, Mixture, shuffled
from xtra_jax.data.record_index import where
from xtra_jax.data.sources import Source
from xtra_jax.data.workers import default_workers, make_in_workers
from xtra_jax.errors import UserError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray | dict[str, np.ndarray]]

_ENDLESS = 2**48


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    prefetch: int = 2,
    shards: Sequence[int] = (0,),
    num_shards: int = 1,
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Yields this process's share of the training batches, without end.

    Every example is seen once per epoch; an epoch may end within a batch. An image that cannot be
    decoded keeps its place as zeros with weight 0, and is named once on stderr.

    Args:
        source: where records come from.
        transform: maps uint8 `[height, width, 3]` and a generator to uint8 `[size, size, 3]`, and
            has an attribute `size`; or to a dict of `image` and other arrays, and then has what
            stands for a bad image as its attribute `blank`. It must not use JAX, and must pickle
            if there are workers.
        batch_size: global batch size; `len(shards) / num_shards` of its rows are yielded.
        seed: at least 0; decides the order and the augmentation.
        start_step: the first step to yield.
        num_workers: processes that prepare batches; -1 takes `default_workers()`, and 0 prepares
            them in threads of this one. It changes no batch.
        prefetch: batches that each worker keeps ready beside the one it makes; together they hold
            `num_workers * (prefetch + 1)` of them in memory, of which `default_workers()` gives
            them a quarter at the most.
        shards: which shards of each batch to yield, in `[0, num_shards)`, side by side; see
            `xtra_jax.parallel.mesh.batch_shards`.
        num_shards: into how many shards each batch is cut.
        bad_images: collects those of the batches that were yielded.

    Raises:
        UserError: the source is empty, or the batch does not divide into the shards.
        RunFailed: a worker died; raised by the iterator.
    """
    share = _Share.of(source, batch_size, shards, num_shards)
    sample = _TrainSample(source, transform, share, sample_order(source, seed), seed, start_step)
    return _batches(sample, _ENDLESS, num_workers, prefetch, bad_images)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    prefetch: int = 2,
    shards: Sequence[int] = (0,),
    num_shards: int = 1,
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Yields this process's share of one pass over the source, every example exactly once.

    Records come in order. All processes yield equally many batches of equal shape; rows beyond the
    last record are padding with weight 0. Arguments and errors are those of `train_batches`.
    """
    share = _Share.of(source, batch_size, shards, num_shards)
    steps = -(-len(source) // batch_size)
    sample = _EvalSample(source, transform, share)
    return _batches(sample, steps, num_workers, prefetch, bad_images)


def sample_order(source: Source, seed: int) -> grain.MapDataset | MixedOrder:
    """Returns the endless order of a source's records, shuffled anew in every epoch."""
    mixed = source.order(seed) if isinstance(source, Mixture) else None
    return mixed or shuffled(len(source), seed)


@dataclass(frozen=True)
class _Share:
    """The rows of every global batch that one process reads."""

    batch_size: int
    rows: int  # per shard
    shards: tuple[int, ...]

    @classmethod
    def of(cls, source: Source, batch_size: int, shards: Sequence[int], num_shards: int) -> _Share:
        if len(source) == 0:
            raise UserError("The data set is empty; there is nothing to make batches of.")
        if batch_size < 1 or batch_size % num_shards:
            raise UserError(
                f"The batch size {batch_size} does not divide into {num_shards} shards; "
                "it has to be a positive multiple of their number."
            )
        return cls(batch_size, batch_size // num_shards, tuple(shards))

    @property
    def local_rows(self) -> int:
        return self.rows * len(self.shards)

    def position(self, number: int) -> int:
        """Returns the place in the global sequence of this process's sample of that number."""
        step, row = divmod(number, self.local_rows)
        shard, row = divmod(row, self.rows)
        return step * self.batch_size + self.shards[shard] * self.rows + row


@dataclass(frozen=True)
class _TrainSample:
    """Maps the number of a sample of this process to the sample."""

    source: Source
    transform: Transform
    share: _Share
    order: grain.MapDataset | MixedOrder
    seed: int
    start_step: int

    def __call__(
        self, number: int, reading: Callable[[int], None]
    ) -> tuple[Batch, BadRecord | None]:
        position = self.share.position(number) + self.start_step * self.share.batch_size
        index = int(self.order[position])
        reading(index)
        rng = np.random.default_rng((self.seed, position))
        return _load(self.source, index, self.transform, rng)


@dataclass(frozen=True)
class _EvalSample:
    """Maps the number of a sample of this process to the sample, or to padding after the last."""

    source: Source
    transform: Transform
    share: _Share

    def __call__(
        self, number: int, reading: Callable[[int], None]
    ) -> tuple[Batch, BadRecord | None]:
        index = self.share.position(number)
        if index >= len(self.source):
            return _sample(self.transform, index=-1), None
        reading(index)
        return _load(self.source, index, self.transform, np.random.default_rng(index))


def _load(
    source: Source, index: int, transform: Transform, rng: np.random.Generator
) -> tuple[Batch, BadRecord | None]:
    label, key, image, bad = -1, "", None, None
    try:
        record = source[index]
        label, key = record["label"], record["key"]
        image = transform(decode(record["image"]), rng)
    except BadImage as error:
        bad = BadRecord(index, key or where(source, index), str(error))
    return _sample(transform, index, label, image), bad


def _sample(
    transform: Transform,
    index: int,
    label: int = -1,
    image: np.ndarray | dict[str, np.ndarray] | None = None,
) -> Batch:
    """Returns one row of a batch, of zeros and without weight if there is no image."""
    result = _blank(transform) if image is None else image
    return {
        **(result if isinstance(result, dict) else {"image": result}),
        "label": np.int32(label),
        "weight": np.float32(image is not None),
        "index": np.int64(index),
    }


def _blank(transform: Transform) -> np.ndarray | dict[str, np.ndarray]:
    """Returns what a transform says stands for a bad image; zeros if it says nothing."""
    blank = getattr(transform, "blank", None)
    return np.zeros((transform.size, transform.size, 3), np.uint8) if blank is None else blank


@dataclass(frozen=True)
class _BatchJob:
    """Makes this process's share of the batch of any number; see `xtra_jax.data.ahead.Job`."""

    sample: _TrainSample | _EvalSample

    @property
    def layout(self) -> Layout:
        rows = self.sample.share.local_rows
        row = _sample(self.sample.transform, index=-1)
        return {name: ((rows, *np.shape(value)), value.dtype) for name, value in row.items()}

    def fill(self, number: int, batch: Batch, reading: Callable[[int], None]) -> list[BadRecord]:
        found = []
        rows = self.sample.share.local_rows
        for row in range(rows):
            sample, bad = self.sample(number * rows + row, reading)
            for name, value in sample.items():
                _set_row(batch[name], row, value, name)
            if bad is not None:
                found.append(bad)
        return found

    def where(self, index: int) -> str:
        return where(self.sample.source, index)


def _nbytes(layout: Layout) -> int:
    return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in layout.values())


def _set_row(array: np.ndarray, row: int, value: np.ndarray, name: str) -> None:
    if (np.shape(value), value.dtype) != (array.shape[1:], array.dtype):
        raise ValueError(
            f"a transform gave {name} as {value.dtype} {list(np.shape(value))}, and it promised "
            f"{array.dtype} {list(array.shape[1:])}"
        )
    array[row] = value


def _batches(
    sample: _TrainSample | _EvalSample,
    count: int,
    num_workers: int,
    prefetch: int,
    bad_images: BadImages | None,
) -> Iterator[Batch]:
    bad_images = bad_images or BadImages()
    job = _BatchJob(sample)
    workers = default_workers(_nbytes(job.layout), prefetch) if num_workers < 0 else num_workers
    if workers:
        made = make_in_workers(job, count, workers, prefetch)
    else:
        made = make_in_threads(job, count, max(prefetch, 1))
    with contextlib.closing(made):
        for batch, bad in made:
            for record in bad:
                bad_images.add(record)
            yield batch
