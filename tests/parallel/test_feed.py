"""The feed: batches placed ahead of time, in order, no more than it may hold, closed cleanly."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from xtra_jax.errors import RunFailed, UserError
from xtra_jax.parallel.feed import Feed
from xtra_jax.parallel.mesh import make_mesh, put_batch
from xtra_jax.training.loop import Meter


class Numbers:
    """0, 1, 2, ...; remembers how many were made, and whether it was closed, and by whom."""

    def __init__(self, end=1000, error=None, seconds=0.0):
        self.made, self.closed_by = 0, []
        self._end, self._error, self._seconds = end, error, seconds

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self._seconds)
        if self.made == self._end:
            raise self._error or StopIteration
        self.made += 1
        return self.made - 1

    def close(self):
        self.closed_by.append(threading.current_thread().name)


def settled(numbers):
    """How many were made, when no more are."""
    made = -1
    while made != numbers.made:
        made = numbers.made
        time.sleep(0.2)
    return made


def feeds():
    return [thread for thread in threading.enumerate() if thread.name == "feed"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not feeds()


def test_batches_come_in_order_and_end():
    numbers = Numbers(end=20)
    feed = Feed(numbers, lambda number: number * 10)
    assert list(feed) == list(range(0, 200, 10))
    assert list(feed) == []
    assert numbers.closed_by == ["feed"]


@pytest.mark.parametrize("ready", [1, 2, 5])
def test_it_holds_as_many_batches_as_it_is_told(ready):
    numbers = Numbers()
    feed = Feed(numbers, lambda number: number, ready=ready)
    assert settled(numbers) == ready
    for taken in range(1, 4):
        next(feed)
        assert settled(numbers) == taken + ready
    feed.close()


def test_a_batch_that_was_taken_is_not_kept():
    class Batch:
        pass

    feed = Feed((Batch() for _ in itertools.count()), lambda batch: batch)
    batch = weakref.ref(next(feed))
    next(feed)
    gc.collect()
    assert batch() is None
    feed.close()


def test_batches_are_made_and_placed_while_the_step_computes():
    numbers = Numbers(seconds=0.1)
    feed = Feed(numbers, lambda number: number)
    next(feed)
    time.sleep(1)  # a long step
    begin = time.monotonic()
    assert [next(feed), next(feed)] == [1, 2]
    assert time.monotonic() - begin < 0.1
    feed.close()


@pytest.mark.parametrize("error", [UserError("a label"), RunFailed("a worker"), TypeError("a bug")])
def test_what_is_raised_in_the_thread_comes_where_its_batch_would(error):
    numbers = Numbers(end=3, error=error)
    feed = Feed(numbers, lambda number: number)
    assert [next(feed) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as found:
        next(feed)
    assert found.value is error
    assert numbers.closed_by == ["feed"]
    assert list(feed) == []


def test_an_error_in_placing_is_raised_too():
    def put(number):
        if number == 2:
            raise ValueError("no memory left")
        return number

    numbers = Numbers()
    feed = Feed(numbers, put)
    assert [next(feed), next(feed)] == [0, 1]
    with pytest.raises(ValueError, match="no memory left"):
        next(feed)
    assert numbers.closed_by == ["feed"]


def test_closing_ends_the_thread_and_closes_what_it_reads_from_at_any_moment():
    for seconds in (0.0, 0.05):  # while it waits for room, and while it makes a batch
        for taken in range(4):
            numbers = Numbers(seconds=seconds)
            feed = Feed(numbers, lambda number: number)
            for _ in range(taken):
                next(feed)
            feed.close()
            feed.close()
            assert not feeds() and numbers.closed_by == ["feed"]
            assert list(feed) == []


def test_a_generator_is_closed_in_the_thread_that_runs_it():
    ended = []

    def batches():
        try:
            yield from itertools.count()
        finally:
            ended.append(threading.current_thread().name)

    feed = Feed(batches(), lambda batch: batch)
    next(feed)
    feed.close()
    assert ended == ["feed"]


def test_batches_that_are_placed_on_a_mesh_stay_what_they_were():
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    rng = np.random.default_rng(0)
    batches = [{"image": rng.integers(0, 256, (16, 4, 4, 3), np.uint8)} for _ in range(6)]
    feed = Feed(batches, lambda batch: put_batch(batch, mesh))
    for placed, batch in zip(feed, batches, strict=True):
        assert isinstance(placed["image"], jax.Array) and len(placed["image"].devices()) == 8
        np.testing.assert_array_equal(placed["image"], batch["image"])


def test_the_share_of_time_spent_on_input_is_the_time_that_the_step_waits():
    def waited(seconds_per_batch, seconds_per_step):
        feed = Feed(Numbers(seconds=seconds_per_batch), lambda number: number)
        meter = Meter(batch_size=1, flops_per_image=1.0, peak_flops=None)
        meter.wait_for(feed)
        meter._waited, meter._since = 0.0, time.monotonic()
        for step in range(10):
            meter.wait_for(feed)
            time.sleep(seconds_per_step)
            meter.add(
                step,
                dict.fromkeys(("loss", "grad_norm", "param_norm", "lr"), 1.0) | {"images": 1.0},
            )
        feed.close()
        return meter.report()["input_wait"]

    assert waited(0.02, 0.1) < 0.3  # all of it behind the step
    assert waited(0.1, 0.02) > 0.5
