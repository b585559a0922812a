"""What is told to stop saves at an agreed step, ends well, and goes on as if nothing had been."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time

import pytest

from tests.runs import ROOT, Run, assert_same_curve, assert_same_state, complete, saved_state, told
from xtra_jax.training.stopping import Stop

LONG = {"steps": 5000}


@pytest.fixture
def handlers():
    """Puts back what a stop leaves in place for the end of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_stops_before_the_next_step_and_the_first_reason_stays():
    stop = Stop()
    assert not stop.reached(4) and stop.reason == ""
    stop.request("the first")
    stop.request("the second")
    assert stop.reached(5) and stop.reached(6) and stop.reason == "the first"


def test_no_step_begins_while_processes_agree_on_where_to_stop():
    stop = Stop()
    assert stop.freeze() is None
    reached = []
    thread = threading.Thread(target=lambda: reached.extend([stop.reached(0), stop.reached(1)]))
    thread.start()
    time.sleep(0.2)
    assert not reached
    stop.stop_at(1, "agreed")
    thread.join(30)
    assert reached == [False, True] and stop.freeze() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_requests_and_later_ones_do_no_harm(handlers, number):
    with Stop() as stop:
        stop.reached(0)
        os.kill(os.getpid(), number)
        wait_for(lambda: stop.reason)
        assert stop.reached(1) and stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # while the process winds up
    assert stop.reason == number.name


def test_a_run_that_nothing_stopped_leaves_the_handlers_as_they_were(handlers):
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    seen = []

    def body():
        with Stop() as stop:
            seen.append(stop.reached(0))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(30)
    assert seen == [False]


def stopped_at(run: Run) -> tuple[int, str]:
    """The step and the reason that a stopped run tells in its last line."""
    found = re.search(r"^stopped at step (\d+) by (.*); saved: the same", run.output, re.MULTILINE)
    assert found, run.output
    return int(found[1]), found[2]


def test_a_run_that_gets_sigterm_saves_exits_with_0_and_resumes_exactly(runs, tmp_path):
    reference = tmp_path / "reference"
    runs.start(reference).succeed()
    workdir = tmp_path / "run"
    # The signal comes while a batch is fetched, a save is going on or a step is taken.
    run = runs.start(workdir)
    assert run.wait_until(lambda: run.step() >= 4)
    run.kill(signal.SIGTERM)
    run.kill(signal.SIGTERM)
    step, reason = stopped_at(run.succeed())
    assert reason == "SIGTERM" and 4 <= step < 20 and max(complete(workdir)) == step
    assert "xtra: " not in run.output
    assert runs.start(workdir).succeed().continued_from() == step
    assert_same_state(saved_state(workdir), saved_state(reference))
    assert told(workdir) == told(reference)


def test_the_exit_code_of_a_stopped_run_can_be_chosen(runs, tmp_path):
    run = runs.start(tmp_path / "run", LONG, arguments=("--stopped_exit_code", "85"))
    assert run.wait_until(lambda: run.step() >= 2)
    run.kill(signal.SIGUSR1)
    assert run.wait() == 85
    step, reason = stopped_at(run)
    assert reason == "SIGUSR1" and max(complete(tmp_path / "run")) == step


def test_a_run_stopped_while_it_compiles_ends_at_once(runs, tmp_path):
    run = runs.start(tmp_path / "run", cached=False)
    assert run.wait_until(lambda: "tokens in" in run.output)
    run.kill(signal.SIGTERM)
    assert run.wait(60) == 0
    assert "stopped by SIGTERM before the first step: the same command continues" in run.output
    assert complete(tmp_path / "run") == [] and run.step() == 0


@pytest.mark.slow
def test_worker_processes_outlive_a_signal_to_all_until_the_save_is_done(runs, tmp_path):
    settings = LONG | {"data.num_workers": 2}
    run = runs.start(tmp_path / "run", settings, start_new_session=True)
    assert run.wait_until(lambda: run.step() >= 2)
    os.killpg(run.process.pid, signal.SIGTERM)
    run.kill(signal.SIGUSR1)
    step, _ = stopped_at(run.succeed())
    assert max(complete(tmp_path / "run")) == step and "Traceback" not in run.output


@pytest.mark.slow
@pytest.mark.parametrize("told_to", [(0,), (1,), (1, 0)])
def test_two_processes_stop_at_one_step_whichever_of_them_is_told(runs, tmp_path, told_to):
    workdir = tmp_path / "run"
    pair = runs.start_two(workdir)
    assert pair[0].wait_until(lambda: pair[0].step() >= 4)
    for number in told_to:
        pair[number].kill(signal.SIGTERM)
    assert [process.wait() for process in pair] == [0, 0]
    step, reason = stopped_at(pair[0])
    assert reason == f"SIGTERM to process {told_to[0]}" or len(told_to) == 2
    assert max(complete(workdir)) == step < 20
    assert "stopped" not in pair[1].output and "xtra: " not in pair[1].output

    first, second = runs.start_two(workdir)
    assert first.succeed().continued_from() == step
    second.succeed()
    runs.start(tmp_path / "reference", devices=4).succeed()
    assert_same_curve(workdir, tmp_path / "reference")


@pytest.mark.slow
def test_two_processes_stopped_before_their_first_step_end_at_once(runs, tmp_path):
    pair = runs.start_two(tmp_path / "run", cached=False)
    assert pair[0].wait_until(lambda: "tokens in" in pair[0].output)
    pair[1].kill(signal.SIGTERM)
    assert [process.wait(60) for process in pair] == [0, 0]
    assert "stopped by SIGTERM to process 1 before the first step" in pair[0].output
    assert "stopped" not in pair[1].output and "xtra: " not in pair[1].output


@pytest.mark.slow
def test_a_demo_that_is_stopped_probes_nothing(runs, tmp_path):
    workdir = tmp_path / "demo"
    keys = [f"--config.{key}={value}" for key, value in runs.overrides(LONG).items()]
    keys = [key for key in keys if "eval_split" not in key]
    demo = Run(
        [sys.executable, "-m", "xtra_jax", "demo", f"--workdir={workdir}", *keys],
        os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        tmp_path / "log",
    )
    assert demo.wait_until(lambda: demo.step() >= 2)
    demo.kill(signal.SIGTERM)
    step, _ = stopped_at(demo.succeed())
    assert max(complete(workdir)) == step and "probing" not in demo.output
