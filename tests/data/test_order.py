"""What a step sees depends on the seed, the step and the global batch, and on nothing else."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random

import numpy as np
import pytest

from tests.data.small_sets import noise, prepare
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform

RECORDS, BATCH = 100, 12
STEPS = 3 * RECORDS // BATCH  # three epochs, which end within batches
BAD = 5


@pytest.fixture(scope="module", params=[0, BAD], ids=["intact", "5% corrupt"])
def run(request, tmp_path_factory):
    """Starts the batches of one data set, in four files of which some images may be corrupt."""
    images = noise(RECORDS, bad=request.param / 100)
    root = prepare(tmp_path_factory.mktemp("order"), images, shards=4)
    source = open_source("small", "train", root)
    transform = PretrainTransform(8, scale=(0.2, 1.0))
    return functools.partial(train_batches, source, transform, batch_size=BATCH, seed=5)


@pytest.fixture(scope="module")
def expected(run):
    return hashes(run(), STEPS)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def digest(batch):
    found = hashlib.sha256()
    for name, array in sorted(batch.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def hashes(batches, count):
    return [digest(batch) for batch in take(batches, count)]


def joined(shares):
    """The global batches of hosts that each read some of their rows."""
    return [
        digest({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        for parts in zip(*shares, strict=True)
    ]


def test_three_epochs_have_three_orders_and_each_sees_every_example_once(run, expected):
    assert len(set(expected)) == STEPS
    index = np.concatenate([batch["index"] for batch in take(run(), STEPS)])
    epochs = index.reshape(3, RECORDS)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(RECORDS), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_corrupt_images_are_those_without_weight_in_every_epoch(run, request):
    bad = BAD if "5% corrupt" in request.node.name else 0
    batches = take(run(), STEPS)
    index, weight = (np.concatenate([b[name] for b in batches]) for name in ("index", "weight"))
    assert (weight == 0).sum() == 3 * bad
    assert len(set(index[weight == 0])) == bad


SOME_WORKERS = [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("workers", SOME_WORKERS)
def test_workers_change_no_batch(run, expected, workers):
    assert hashes(run(num_workers=workers), STEPS) == expected


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_change_no_batch(run, expected, hosts):
    shares = [take(run(shards=(host,), num_shards=hosts), STEPS) for host in range(hosts)]
    assert joined(shares) == expected


@pytest.mark.slow
def test_hosts_with_workers_change_no_batch(run, expected):
    shares = [take(run(shards=(host,), num_shards=2, num_workers=2), STEPS) for host in range(2)]
    assert joined(shares) == expected


@pytest.mark.parametrize("workers", [(0,), pytest.param((0, 2, 0, 1), marks=pytest.mark.slow)])
def test_ten_restarts_at_random_steps_change_no_batch(run, expected, workers):
    moments = sorted(random.Random(0).sample(range(1, STEPS), 10))
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise([0, *moments, STEPS])):
        # What was prepared beyond the end is lost with the run.
        num_workers = workers[number % len(workers)]
        found += hashes(run(start_step=begin, num_workers=num_workers), end - begin)
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_no_evaluation(run, workers):
    source = run.args[0]
    evaluate = functools.partial(eval_batches, source, EvalTransform(8, 8), batch_size=24)
    assert hashes(evaluate(num_workers=workers), 99) == hashes(evaluate(), 99)


def test_seeds_have_orders_and_crops_of_their_own(run, expected):
    other = take(run(seed=6), STEPS)
    assert not set(map(digest, other)) & set(expected)
