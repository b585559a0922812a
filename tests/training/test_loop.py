"""The loop's order, and what its meter tells."""

import contextlib
import itertools

import numpy as np
import pytest

from xtra_jax.errors import RunFailed
from xtra_jax.training import loop
from xtra_jax.training.loop import Evaluation, Meter, train
from xtra_jax.training.progress import Progress
from xtra_jax.training.step import TrainState


def metrics(loss=1.0, images=8.0, **changes):
    values = {"loss": loss, "grad_norm": 2.0, "param_norm": 0.1, "lr": 1e-3, "images": images}
    return {name: np.float32(value) for name, value in (values | changes).items()}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    return now


def test_rates_and_mfu_are_images_and_flops_over_time(clock):
    meter = Meter(batch_size=8, flops_per_image=50.0, peak_flops=1000.0)
    for step in range(4):
        meter.add(step + 1, metrics())
    clock[0] = 2.0
    report = meter.report()
    assert report["images_per_s"] == 16 and report["step_ms"] == 500
    assert report["mfu"] == pytest.approx(16 * 50 / 1000)
    assert "mfu" not in _report(Meter(8, 50.0, None), metrics())


def _report(meter, *steps):
    for step, values in enumerate(steps):
        meter.add(step + 1, values)
    return meter.report()


def test_time_in_evaluation_counts_for_nothing_and_waiting_for_input_is_told(clock):
    def batches():
        clock[0] += 1.0
        yield {}

    meter = Meter(8, 1.0, None)
    meter.wait_for(batches())
    clock[0] += 3.0
    meter.add(1, metrics())
    with meter.paused():
        clock[0] += 100.0
    report = meter.report()
    assert report["input_wait"] == pytest.approx(0.25)
    assert report["compute"] == 0 and report["host"] == pytest.approx(0.75)
    assert report["images_per_s"] == pytest.approx(2)


def test_time_in_which_the_host_waits_for_the_devices_is_told_apart(clock, monkeypatch):
    def wait(results):
        clock[0] += 1.0

    monkeypatch.setattr(loop.jax, "block_until_ready", wait)
    meter = Meter(8, 1.0, None)
    meter.add(1, metrics())
    clock[0] += 3.0
    for step in range(2, 4):
        meter.add(step, metrics())  # the third waits for the first
    report = meter.report()  # and this for all
    assert report["compute"] == pytest.approx(2 / 5) and report["host"] == pytest.approx(3 / 5)
    assert report["input_wait"] == 0
    assert _report(meter, metrics())["host"] == pytest.approx(0)


class Profile:
    """Traces the second and the third step, and takes a minute to begin and to write it down."""

    def __init__(self, clock):
        self.calls, self._clock = [], clock

    def begins_with(self, step):
        return step == 2

    def start(self):
        self.calls.append("start")
        self._clock[0] += 60.0

    def step(self, step):
        self.calls.append(f"step {step}")
        return contextlib.nullcontext()

    def ends_with(self, step):
        return step == 3

    def close(self, step):
        self.calls.append(f"close {step}")
        self._clock[0] += 60.0


def test_a_profile_sees_every_step_and_nothing_about_it_is_training(clock, monkeypatch):
    """Nor does it see what is left of the steps before."""
    recorder, profile = Recorder(save_every=100), Profile(clock)
    reports = []
    recorder.write = lambda step, metrics: reports.append(metrics)
    check = Meter.check
    monkeypatch.setattr(Meter, "check", lambda self: profile.calls.append("wait") or check(self))
    recorder.run(profile=profile)
    calls = [call for call, _ in itertools.groupby(profile.calls)]
    assert calls[:8] == ["step 1", "wait", "start", "step 2", "wait", "step 3", "wait", "close 3"]
    assert max(report["step_ms"] for report in reports if "step_ms" in report) < 1000


def test_the_loss_told_is_the_mean_over_valid_images():
    report = _report(Meter(8, 1.0, None), metrics(loss=1.0, images=6.0), metrics(3.0, images=2.0))
    assert report["loss"] == pytest.approx((6 * 1 + 2 * 3) / 8)
    assert report["bad_images"] == 8
    nothing = _report(Meter(8, 1.0, None), metrics(0.0, images=0.0))
    assert nothing["loss"] == 0 and nothing["bad_images"] == 8


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_the_first_step_that_is_not_finite_is_named(name):
    meter = Meter(8, 1.0, None)
    for step, value in ((6, 1.0), (7, np.nan), (8, np.inf)):
        meter.add(step, metrics(**{name: value}))
    with pytest.raises(RunFailed, match=f"{name} is nan at step 7"):
        meter.check()


class Recorder:
    """Stands for everything the loop calls, and notes in which order."""

    def __init__(self, save_every, stopped_at=None):
        self.calls = []
        self._save_every = save_every
        self._stopped_at = stopped_at
        self.reason = "SIGTERM"
        self._unflushed = None

    def due(self, step):
        return step > 0 and step % self._save_every == 0

    def reached(self, step):
        return step == self._stopped_at

    def save(self, step, state, **saved_with):
        assert state.step == step == saved_with["position"]
        assert self._unflushed is None  # what goes on from here repeats no metrics of before
        self.calls.append(f"save {step}")

    def wait(self):
        self.calls.append("wait")

    def write(self, step, metrics):
        self._unflushed = step

    def flush(self):
        self._unflushed = None

    def batches(self):
        for number in range(100):
            self.calls.append(f"fetch {number}")
            yield {}

    def take_step(self, state, batch):
        self.calls.append(f"step {state.step + 1}")
        return TrainState(state.step + 1, {}, ()), metrics()

    def evaluate(self, params):
        self.calls.append("evaluate")
        return {"loss": 1.0}

    def run(self, first_step=0, steps=4, others=None, profile=None):
        return train(
            TrainState(first_step, {}, ()),
            self.batches(),
            self.take_step,
            first_step=first_step,
            steps=steps,
            checkpointer=self,
            saved_with=lambda step: {"position": step},
            evaluations={"validation": Evaluation(2, self.evaluate)} | (others or {}),
            meter=Meter(8, 1.0, None),
            writer=self,
            progress=Progress(steps, active=False),
            stop=self,
            profile=profile,
            log_every=2,
        )


def test_the_order_is_evaluate_save_fetch_step():
    recorder = Recorder(save_every=2)
    assert recorder.run()[1] == 4
    assert recorder.calls == [
        *("fetch 0", "step 1", "fetch 1", "step 2"),
        *("evaluate", "save 2", "fetch 2", "step 3", "fetch 3", "step 4"),
        *("evaluate", "save 4", "wait"),
    ]


def test_every_evaluation_has_its_own_steps_and_all_are_made_at_the_end():
    def noted(name):
        return lambda params: recorder.calls.append(name) or {}

    recorder = Recorder(save_every=100)
    recorder.run(others={"odd": Evaluation(3, noted("odd")), "last": Evaluation(0, noted("last"))})
    steps = [call for call in recorder.calls if not call.startswith(("fetch", "save", "wait"))]
    assert steps == [
        *("step 1", "step 2", "evaluate", "step 3", "odd", "step 4", "evaluate", "odd", "last")
    ]


def test_no_evaluation_counts_as_time_of_training(clock, monkeypatch):
    def slow(params):
        clock[0] += 50.0
        return {}

    def take_step(state, batch):
        clock[0] += 1.0
        return TrainState(state.step + 1, {}, ()), metrics()

    recorder = Recorder(save_every=100)
    recorder.take_step = take_step
    written = []
    monkeypatch.setattr(recorder, "write", lambda step, metrics: written.append(metrics))
    recorder.run(others={"slow": Evaluation(1, slow)})
    assert [m["step_ms"] for m in written if "step_ms" in m] == pytest.approx([1000.0, 1000.0])


def test_what_was_evaluated_before_the_restart_is_not_evaluated_again():
    recorder = Recorder(save_every=100)
    recorder.run(first_step=2)
    assert recorder.calls[:2] == ["fetch 0", "step 3"]
    assert recorder.calls[-3:] == ["evaluate", "save 4", "wait"]


def test_a_stop_saves_and_ends_the_run_without_evaluation_or_another_fetch():
    recorder = Recorder(save_every=100, stopped_at=2)
    assert recorder.run()[1] == 2
    assert recorder.calls == ["fetch 0", "step 1", "fetch 1", "step 2", "save 2", "wait"]


def test_a_stop_at_the_last_step_comes_too_late_to_leave_anything_out():
    recorder = Recorder(save_every=100, stopped_at=4)
    assert recorder.run()[1] == 4
    assert recorder.calls[-3:] == ["evaluate", "save 4", "wait"]


def test_a_step_that_diverged_is_never_saved():
    recorder = Recorder(save_every=1)
    recorder.take_step = lambda state, batch: (
        TrainState(state.step + 1, {}, ()),
        metrics(loss=np.nan if state.step == 1 else 1.0),
    )
    with pytest.raises(RunFailed, match="at step 2"):
        recorder.run()
    assert [call for call in recorder.calls if call.startswith("save")] == ["save 1"]
