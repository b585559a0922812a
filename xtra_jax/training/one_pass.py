"""One pass of a frozen model over a set of images, on all devices of a mesh, each image once."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from xtra_jax.data.images import UnlessOfSize, each_image, open_images, without_paths
from xtra_jax.data.sources import Source, open_source
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import batch_shards, check_batch, num_batch_shards, put_batch
from xtra_jax.parallel.sharding import replicated

PER_DEVICE = 32  # images at once, where nothing else is asked for
_SAY_EVERY = 10.0  # seconds
WORTH_WORKERS = 2048  # images: for fewer, starting processes takes longer than decoding


def chosen_images(
    config: ConfigDict, images: Sequence[str] = (), dataset: str = "", split: str = ""
) -> tuple[Source, str]:
    """The images that a command line names, and what to call them, without where they lie.

    Args:
        config: of the checkpoint; without images and data set, what it validates on.
        images: a folder, an array, or image files.
        dataset: as `xtra_jax.data.sources.open_source` takes it.
        split: of a folder ("all" by default) or of a data set (the one the config validates on).

    Raises:
        UserError: there are no such images, or both kinds are given.
    """
    data = config.data
    if images and dataset:
        raise UserError("--images and --dataset name two sets of images: give one of them")
    if images:
        more = f" and {len(images) - 1} more" if len(images) > 1 else ""
        name = os.path.basename(os.path.abspath(images[0]))
        return open_images(images, split or "all"), f"{name}{more}"
    split = split or data.eval_split
    dataset = dataset or data.eval_dataset or data.dataset
    if not split:
        raise UserError("the config names no held-out images: give --images, or --dataset, --split")
    # A folder of the run's own is not where another data set lies.
    elsewhere = data.dataset == "folder" and dataset != "folder"
    source = open_source(dataset, split, "" if elsewhere else data.data_dir)
    return source, f"{without_paths(dataset)} ({split})"


def one_pass(
    function: Callable[[dict, jax.Array], dict[str, jax.Array]],
    params: dict,
    source: Source,
    transform: UnlessOfSize,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int = 0,
    num_workers: int = 0,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what a function says of the images, in the order of the source.

    Matrix products of float32 are in full float32, where a GPU or a TPU would round the factors.

    Args:
        function: parameters and images [batch, size, size, 3], uint8 or normalised float32, to
            arrays [batch, ...]; called inside of a compiled step.
        params: on the devices already.
        batch_size: images at once, over all devices; 0 means `PER_DEVICE` for each.
        num_workers: processes that decode, for large sets.

    Returns:
        An iterator of batches without padding, the same on every process: the function's arrays,
        `weight` (0 for an image that is unusable) and `label`.

    Raises:
        UserError: the batch is below 0, or does not divide over the mesh.
    """
    shards = num_batch_shards(mesh)
    if batch_size < 0:
        raise UserError(
            f"batch_size={batch_size} is no number of images: leave it out for {PER_DEVICE} on "
            "each device"
        )
    if batch_size:
        check_batch(batch_size, mesh)
    # No more padding than the mesh needs.
    batch_size = min(batch_size or PER_DEVICE * shards, -(-len(source) // shards) * shards)

    batches = each_image(
        source,
        transform,
        batch_size=batch_size,
        num_workers=num_workers if len(source) >= WORTH_WORKERS else 0,
        prefetch=prefetch,
        shards=batch_shards(mesh),
        num_shards=shards,
    )
    step = compiled(function, mesh, "highest")
    yield from outputs(step, params, batches, mesh, len(source), batch_size)


def compiled(function: Callable[[dict, jax.Array], dict[str, jax.Array]], mesh, precision: str):
    """A step for `outputs`, to be kept for as many passes as there are.

    Args:
        function: see `one_pass`.
        precision: of matrix products of float32: "highest" or "default".
    """

    def step(params, batch):
        with jax.default_matmul_precision(precision):
            found = function(params, batch["image"])
        return found | {name: batch[name] for name in batch if name != "image"}

    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=_reproducible(mesh))


def outputs(
    step,
    params: dict,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    count: int,
    batch_size: int,
    taken: Sequence[str] = ("weight", "label"),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what a `compiled` step says of batches of so many images, without padding.

    Args:
        batches: this process's share of each, as `each_image` yields them; closed in the end.
        taken: which of their arrays, beside the images, come out as they went in.
    """
    with contextlib.closing(batches):
        running: deque[tuple[int, dict]] = deque()
        tell = _Teller(count)
        for number, batch in enumerate(batches):
            inputs = {name: batch[name] for name in ("image", *taken)}
            rows = min(batch_size, count - number * batch_size)
            running.append((rows, step(params, put_batch(inputs, mesh))))
            if len(running) > 1:  # the device works on one batch while the one before is fetched
                yield _fetched(*running.popleft())
                tell(number * batch_size)
        while running:
            yield _fetched(*running.popleft())


class _Teller:
    """Says now and then how many images are done; of several processes, the first does."""

    def __init__(self, total: int):
        self._total = total
        self._begin = self._said = time.monotonic()

    def __call__(self, seen: int) -> None:
        now = time.monotonic()
        if now - self._said < _SAY_EVERY or jax.process_index():
            return
        self._said = now
        rate = seen / (now - self._begin)
        print(f"{seen:,} of {self._total:,} images, {rate:,.1f} images/s", file=sys.stderr)


def _reproducible(mesh: jax.sharding.Mesh) -> dict | None:
    """On GPUs, only kernels that give the same bits every time."""
    gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    return {"xla_gpu_deterministic_ops": True} if gpu else None


def _fetched(rows: int, outputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array)[:rows] for name, array in outputs.items()}
