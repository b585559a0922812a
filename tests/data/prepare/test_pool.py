"""Tasks over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from xtra_jax.data.prepare.pool import run
from xtra_jax.errors import RunFailed, UserError


def square(task, report):
    report(task)
    return task * task


def fail(task, report):
    if task == 3:
        raise UserError("three is one too many")
    return task


def break_down(task, report):
    return 1 / task


def die(task, report):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once_and_reported(workers):
    counts = []
    results = dict(run([3, 1, 4, 2], square, workers, counts.append))
    assert results == {3: 9, 1: 1, 4: 16, 2: 4}
    assert sum(counts) == 10


def test_no_tasks_need_no_processes():
    assert list(run([], square, 4, print)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_says_to_the_user_arrives(workers):
    with pytest.raises(UserError, match="^three is one too many$"):
        list(run([1, 2, 3, 4], fail, workers, print))


def test_a_mistake_in_a_worker_shows_where_it_was_made():
    with pytest.raises(RuntimeError, match=r"break_down[\s\S]*ZeroDivisionError"):
        list(run([1, 0, 1], break_down, 2, print))


def test_a_worker_that_is_killed_between_two_tasks_is_reported_as_well():
    results = run([1, 2, 3, 4, 5], square, 2, lambda images: None)
    next(results)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    with pytest.raises(RunFailed, match="a worker process was killed"):
        list(results)


def test_a_worker_that_is_killed_is_reported_at_once():
    with pytest.raises(RunFailed, match="a worker process was killed"):
        list(run([1, 2], die, 2, print))
