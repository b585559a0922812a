"""Weighted nearest neighbours on frozen features, as DINO evaluates them.

The k training images of the largest cosine similarity vote for their classes, each with the weight
exp(similarity / T) (Caron et al., arXiv 2104.14294, after Wu et al., arXiv 1805.01978). Nothing is
trained, and nothing but k is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from xtra_jax.parallel.mesh import BATCH, num_batch_shards

NEIGHBOURS = (10, 20)
TEMPERATURE = 0.07
# Images compared at once: their similarities take 64 MiB on each device.
_TEST_ROWS = 1024  # on each device
_TRAIN_ROWS = 16384
_VOTES = 2**24  # entries of images x classes that are counted at once


def nearest(
    train: np.ndarray,
    test: np.ndarray,
    k: int,
    *,
    usable: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k training images most similar to each test image, most similar first.

    Similarities are those of cosine, in full float32 on every device. Of equal ones the first
    comes first. Memory is bounded: both sets may be memory-mapped and of any size.

    Args:
        train, test: features [images, width]; the same on all processes.
        k: at most as many as there are training images that are usable.
        usable: bool [training images], which of them may be neighbours; all by default.
        mesh: shares out the test images; without one they stay on this process's first device.

    Returns:
        Similarities, float32 [test images, k], and indices into `train`, int32 [test images, k].
    """
    shards = 1 if mesh is None else num_batch_shards(mesh)
    chunk = min(_TEST_ROWS, -(-len(test) // shards)) * shards
    block = min(_TRAIN_ROWS, len(train))
    usable = np.ones(len(train), bool) if usable is None else usable
    place = partial(_placed, mesh=mesh)
    starts = range(0, len(test), chunk)
    # Training blocks in the outer loop: it is the larger set, and each goes to the devices once.
    found = [
        (np.full((chunk, k), -np.inf, np.float32), np.zeros((chunk, k), np.int32)) for _ in starts
    ]
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    merge = jax.jit(_merged, out_shardings=everywhere)
    for first in range(0, len(train), block):
        rows = train[first : first + block]
        candidates = place(_padded(rows, block), spread=False)
        real = place(_padded(usable[first : first + block], block), spread=False)
        for number, start in enumerate(starts):
            queries = place(_padded(test[start : start + chunk], chunk), spread=True)
            best = tuple(place(array, spread=True) for array in found[number])
            found[number] = jax.device_get(merge(best, candidates, queries, first, real))
    similarity, index = (np.concatenate(parts)[: len(test)] for parts in zip(*found, strict=True))
    return similarity, index


def votes_winner(
    similarity: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    """The class with the largest sum of weights, int [images]; the lowest of equals.

    Args:
        similarity: of each image's neighbours, [images, k].
        labels: theirs, int [images, k].
    """
    # A factor common to all votes on an image changes nothing; this one avoids overflow.
    weights = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / np.float64(temperature))
    winners = []
    rows = max(1, _VOTES // num_classes)
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        votes = np.zeros((len(labels[part]), num_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[part]), weights[part])
        winners.append(votes.argmax(axis=1))
    return np.concatenate(winners)


def knn_accuracy(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    mesh: Mesh | None = None,
) -> dict[int, float]:
    """Accuracies, from 0 to 1, by the number of neighbours.

    Where there are fewer training images than neighbours are asked for, all of them vote.

    Args:
        train, test: features [images, width] and labels, int [images], -1 of an image to leave
            out, as not all are; the same on all processes.
        mesh: as for `nearest`.
    """
    (train_features, train_labels), (test_features, test_labels) = train, test
    usable, tested = train_labels >= 0, test_labels >= 0
    most = min(max(neighbours), int(usable.sum()))
    similarity, index = nearest(train_features, test_features, most, usable=usable, mesh=mesh)
    # Left out only here: without some of their rows, mapped features would be a copy in memory.
    similarity, labels = similarity[tested], train_labels[index[tested]]
    found = {}
    for k in neighbours:
        winners = votes_winner(similarity[:, :k], labels[:, :k], num_classes, temperature)
        found[k] = float((winners == test_labels[tested]).mean())
    return found


def _merged(best, candidates, queries, first, usable):
    """The best of those found before and of a block of candidates, so far as these are usable."""
    k = best[0].shape[1]
    similarity = jnp.matmul(
        _unit(queries), _unit(candidates).T, precision=jax.lax.Precision.HIGHEST
    )
    here = jnp.arange(len(candidates), dtype=jnp.int32)
    similarity = jnp.where(usable, similarity, -jnp.inf)
    index = jnp.broadcast_to(first + here, similarity.shape)
    # Earlier ones come first, and top_k keeps the first of equals.
    similarity = jnp.concatenate([best[0], similarity], axis=1)
    index = jnp.concatenate([best[1], index], axis=1)
    similarity, at = jax.lax.top_k(similarity, k)
    return similarity, jnp.take_along_axis(index, at, axis=1)


def _unit(x):
    """Rows of length 1; one of zeros stays."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows, ((0, count - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


def _placed(array: np.ndarray, *, mesh: Mesh | None, spread: bool) -> jax.Array:
    """On the devices: its rows shared out over them, or all on each."""
    if mesh is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    else:
        sharding = NamedSharding(mesh, BATCH if spread else PartitionSpec())
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
