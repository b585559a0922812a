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
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from xtra_jax.data.decode import BadImage, decode
from xtra_jax.data.sources import Source
from xtra_jax.errors import RunFailed, UserError

Batch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

MAX_NAMED_BAD_IMAGES = 20
MAX_BAD_IMAGES_OF_FEW = 10
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
) -> Iterator[Batch]:
    """Yields this process's share of the training batches, without end.

    Every example is seen once per epoch; an epoch may end within a batch. An image that cannot be
    decoded keeps its place as zeros with weight 0, and is named once on stderr.

    Args:
        source: where records come from.
        transform: maps uint8 `[height, width, 3]` and a generator to uint8 `[size, size, 3]`, and
            has an attribute `size`. It must not use JAX, and must pickle if there are workers.
        batch_size: global batch size; `len(shards) / num_shards` of its rows are yielded.
        seed: at least 0; decides the order and the augmentation.
        start_step: the first step to yield.
        num_workers: processes that prepare batches; 0 prepares them in threads of this one. It
            changes no batch. Workers start anew, so a script has to guard its `__main__`.
        prefetch: batches to prepare ahead, for each worker.
        shards: which shards of each batch to yield, in `[0, num_shards)`, side by side; see
            `xtra_jax.parallel.mesh.batch_shards`.
        num_shards: into how many shards each batch is cut.

    Raises:
        UserError: the source is empty, or the batch does not divide into the shards.
    """
    share = _Share.of(source, batch_size, shards, num_shards)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    sample = _TrainSample(source, transform, share, order, seed, start_step)
    return _batches(sample, _ENDLESS, num_workers, prefetch)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    prefetch: int = 2,
    shards: Sequence[int] = (0,),
    num_shards: int = 1,
) -> Iterator[Batch]:
    """Yields this process's share of one pass over the source, every example exactly once.

    Records come in order. All processes yield equally many batches of equal shape; rows beyond the
    last record are padding with weight 0. Arguments and errors are those of `train_batches`.
    """
    share = _Share.of(source, batch_size, shards, num_shards)
    steps = -(-len(source) // batch_size)
    sample = _EvalSample(source, transform, share)
    return _batches(sample, steps * share.local_rows, num_workers, prefetch)


def limit_bad_images(
    batches: Iterator[Batch], num_records: int, bad_fraction: float
) -> Iterator[Batch]:
    """Passes batches on until too many different images were bad: then the data is.

    Args:
        num_records: of the whole source.
        bad_fraction: the share of them that may be bad; ten always may.

    Raises:
        RunFailed: more are, or all of the first batch.
    """
    allowed = max(MAX_BAD_IMAGES_OF_FEW, bad_fraction * num_records)
    bad: set[int] = set()
    good = False
    with contextlib.closing(batches):
        for batch in batches:
            good = good or bool((batch["weight"] > 0).any())
            if not good:
                raise RunFailed(
                    f"all {len(batch['weight'])} images of the first batch are unusable, so there "
                    "is nothing to train on: mend the data set"
                )
            bad.update(batch["index"][(batch["weight"] == 0) & (batch["index"] >= 0)].tolist())
            if len(bad) > allowed:
                raise RunFailed(
                    f"{len(bad)} of the {num_records} training images are unusable, which is more "
                    f"than data.bad_fraction={bad_fraction:g} of them: mend the data set, or raise "
                    "that share"
                )
            yield batch


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
    order: grain.MapDataset
    seed: int
    start_step: int

    def __call__(self, number: int) -> Batch:
        position = self.share.position(number) + self.start_step * self.share.batch_size
        rng = np.random.default_rng((self.seed, position))
        return _load(self.source, self.order[position], self.transform, rng)


@dataclass(frozen=True)
class _EvalSample:
    """Maps the number of a sample of this process to the sample, or to padding after the last."""

    source: Source
    transform: Transform
    share: _Share

    def __call__(self, number: int) -> Batch:
        index = self.share.position(number)
        if index >= len(self.source):
            return _sample(self.transform, index=-1)
        return _load(self.source, index, self.transform, np.random.default_rng(index))


def _load(source: Source, index: int, transform: Transform, rng: np.random.Generator) -> Batch:
    label = -1
    try:
        record = source[index]
        label = record["label"]
        image = transform(decode(record["image"]), rng)
    except BadImage:
        image = None
    return _sample(transform, index, label, image)


def _sample(
    transform: Transform, index: int, label: int = -1, image: np.ndarray | None = None
) -> Batch:
    """Returns one row of a batch, of zeros and without weight if there is no image."""
    size = transform.size
    return {
        "image": np.zeros((size, size, 3), np.uint8) if image is None else image,
        "label": np.int32(label),
        "weight": np.float32(image is not None),
        "index": np.int64(index),
    }


def _batches(
    sample: _TrainSample | _EvalSample, samples: int, num_workers: int, prefetch: int
) -> Iterator[Batch]:
    batches = grain.MapDataset.range(samples).map(sample).batch(sample.share.local_rows)
    threads = 1 if num_workers else prefetch
    batches = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain asks absl for its flags, in a notebook too.
            flags.FLAGS.mark_as_parsed()
        _start_resource_tracker()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=prefetch),
            worker_init_fn=_start_worker,
        )
        batches = batches.map(_out_of_shared_memory)
    return _closing(batches, sample.source)


def _start_resource_tracker() -> None:
    """Starts Python's tracker of shared memory so that no scheduler's SIGUSR1 ends it.

    By itself it ignores only SIGINT and SIGTERM; it inherits what is blocked here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _out_of_shared_memory(batch: Batch) -> Batch:
    """Copies a worker's batch, so that shared memory holds only what is being handed over."""
    return {name: np.array(value) for name, value in batch.items()}


def _closing(batches: grain.IterDataset, source: Source) -> Iterator[Batch]:
    """Yields the batches, names bad images, and ends the workers when it is closed or dropped."""
    iterator = iter(batches)
    named: set[int] = set()
    try:
        for batch in iterator:
            bad = batch["index"][(batch["weight"] == 0) & (batch["index"] >= 0)]
            for index in bad.tolist():
                _name_bad_image(source, index, named)
            yield batch
    finally:
        iterator.close()


def _name_bad_image(source: Source, index: int, named: set[int]) -> None:
    """Says once per image, for the first few, which one is bad and why."""
    if index in named or len(named) > MAX_NAMED_BAD_IMAGES:
        return
    named.add(index)
    if len(named) > MAX_NAMED_BAD_IMAGES:
        print("More images are unusable; they are counted but no longer named.", file=sys.stderr)
        return
    key, reason = f"#{index}", "it cannot be brought to the size asked for"
    try:
        record = source[index]
        key = record["key"]
        decode(record["image"])
    except BadImage as error:
        reason = error
    print(f"Image {key} is unusable and counts for nothing: {reason}.", file=sys.stderr)


def _start_worker(worker: int, workers: int) -> None:
    """Ties a worker's life to the process that started it.

    A trainer that is killed cannot end its workers, which would keep their memory for ever. An
    interrupt from the keyboard reaches the whole group, and so may a scheduler's notice; the
    trainer decides what it means.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
