"""The training loop: evaluate, save, fetch, step, in this order.

At the time of saving, the state has taken `step` steps and the data stream has given `step`
batches, so that what is saved always agrees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from xtra_jax.data.bad_images import BadImageLimit
from xtra_jax.errors import RunFailed
from xtra_jax.training.checkpoint import Checkpointer
from xtra_jax.training.profile import StepProfile
from xtra_jax.training.progress import Progress
from xtra_jax.training.step import TrainState
from xtra_jax.training.stopping import Stop
from xtra_jax.training.telemetry import MetricWriter


class Evaluation(NamedTuple):
    """Something to be measured during training, which doesn't change it.

    Attributes:
        every: steps between measurements, beside the one at the end; 0 for that one alone.
        measure: maps the parameters to metrics; called by every process of the run.
    """

    every: int
    measure: Callable[[dict], Mapping[str, float]]

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


# Steps dispatched ahead of the device: enough to hide the host, few enough to bound the memory.
_AHEAD = 2

# The parameters' norm tells when they have just left the range of float32, before a checkpoint can
# hold them and before a loss shows it. The norm of their update makes XLA copy weights on CPUs.
_MUST_BE_FINITE = ("loss", "grad_norm", "param_norm")
_SHOWN = ("loss", "images_per_s", "compute", "input_wait", "host")


@dataclasses.dataclass
class Meter:
    """Collects the metrics of the steps since the last report, without waiting for them.

    Attributes:
        batch_size: images per step, of weight 0 or not.
        flops_per_image: useful FLOPs of a training step, for MFU.
        peak_flops: of all devices together; None where it isn't known.
        bad_images: ends the run when too many images are broken.
    """

    batch_size: int
    flops_per_image: float
    peak_flops: float | None
    bad_images: BadImageLimit | None = None

    def __post_init__(self):
        self._pending: list[tuple[int, dict]] = []
        self._checked: list[dict] = []
        self._bad_images = 0
        self._waited = self._computed = 0.0
        self._since = time.monotonic()

    def wait_for(self, batches: Iterator[dict]) -> dict:
        """The next batch; the time it takes counts as waiting for input."""
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        return batch

    def add(self, step: int, metrics: dict) -> None:
        """Takes a step's metrics, as arrays that may still be being computed."""
        self._pending.append((step, metrics))
        if len(self._pending) > _AHEAD:
            self._wait_for_devices(self._pending[-1 - _AHEAD][1])

    def _wait_for_devices(self, results) -> None:
        begin = time.monotonic()
        jax.block_until_ready(results)
        self._computed += time.monotonic() - begin

    def check(self) -> None:
        """Fetches what was added.

        Raises:
            RunFailed: a loss, gradient or parameter is not finite, naming it and the first such
                step; or too many images are broken.
        """
        self._wait_for_devices(self._pending)
        for step, metrics in jax.device_get(self._pending):
            if self.bad_images is not None:
                self.bad_images.add(step, round(float(metrics["images"])))
            for name in _MUST_BE_FINITE:
                if not math.isfinite(metrics[name]):
                    raise RunFailed(
                        f"{name} is {metrics[name]} at step {step}, so the run ends here; a lower "
                        "optim.lr, a longer warm-up or float32 may keep it finite"
                    )
            self._checked.append(metrics)
        self._pending = []

    def report(self) -> dict[str, float]:
        """Means over the images since the last report, and how fast they were trained on.

        Three shares of the time add up to 1: `compute`, in which the host had nothing to do but
        wait for the devices; `input_wait`, for a batch; and `host`, all the rest: dispatching
        steps, logging, saving. Devices work on while the host does the other two.

        `bad_images` counts what was broken in the batches since this process started.
        """
        self.check()
        seconds = self.seconds
        steps = len(self._checked)
        valid = [float(metrics["images"]) for metrics in self._checked]
        weights = valid if any(valid) else None
        mean = {
            name: float(np.average([metrics[name] for metrics in self._checked], weights=weights))
            for name in _MUST_BE_FINITE
        }
        images = steps * self.batch_size
        self._bad_images += round(images - sum(valid))
        rate = images / seconds
        report = mean | {
            "lr": float(self._checked[-1]["lr"]),
            "images_per_s": rate,
            "step_ms": 1000 * seconds / steps,
            "compute": self._computed / seconds,
            "input_wait": self._waited / seconds,
            "host": max(seconds - self._computed - self._waited, 0.0) / seconds,
            "bad_images": self._bad_images,
        }
        if self.peak_flops:
            report["mfu"] = rate * self.flops_per_image / self.peak_flops
        self._checked, self._waited, self._computed = [], 0.0, 0.0
        self._since = time.monotonic()
        return report

    @property
    def seconds(self) -> float:
        """Since the last report."""
        return max(time.monotonic() - self._since, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Begins when the steps so far are done; its time is left out of the rates."""
        self.check()
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin


def train(
    state: TrainState,
    batches: Iterator[dict],
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict]],
    *,
    first_step: int,
    steps: int,
    checkpointer: Checkpointer,
    saved_with: Callable[[int], dict],
    evaluations: Mapping[str, Evaluation],
    meter: Meter,
    writer: MetricWriter,
    progress: Progress,
    stop: Stop,
    profile: StepProfile | None = None,
    log_every: int,
) -> tuple[TrainState, int]:
    """Trains from `first_step` to `steps`.

    Args:
        batches: on the devices, beginning with that of `first_step`.
        saved_with: step to the keyword arguments that `Checkpointer.save` takes beside the state.
        evaluations: by name; their metrics are logged under "name/", and their time is left out of
            the training's rates.
        stop: may end the run early, with a save at that step and without an evaluation.
        profile: what traces some of the steps; none by default.

    Returns:
        The state, and the step it stopped at: `steps`, or less where it was told to stop.

    Raises:
        RunFailed: loss, gradients or updates are no longer finite. No checkpoint holds them.
    """
    profile = profile or StepProfile()
    for step in range(first_step, steps + 1):
        last = step == steps
        stopped = stop.reached(step) and not last
        due = {name: each for name, each in evaluations.items() if last or each.due(step)}
        if step > first_step and due and not stopped:
            with meter.paused():  # evaluation is not training
                for name, (_, measure) in due.items():
                    metrics = {f"{name}/{key}": v for key, v in measure(state.params).items()}
                    if metrics:
                        writer.write(step, metrics)
                        progress.note(f"step {step}  " + described(metrics))
        if stopped:
            progress.note(f"{stop.reason}: stopping at step {step} and saving")
        if checkpointer.due(step) or ((last or stopped) and step > first_step):
            meter.check()
            writer.flush()  # what goes on from the checkpoint tells the steps after it only
            checkpointer.save(step, state, **saved_with(step), force=True)
        if last or stopped:
            break
        batch = meter.wait_for(batches)
        if profile.begins_with(step + 1):
            with meter.paused():
                profile.start()
        with profile.step(step + 1):
            state, metrics = train_step(state, batch)
        meter.add(step + 1, metrics)
        if profile.ends_with(step + 1):
            with meter.paused():
                profile.close(step + 1)
        if step == first_step:
            meter.check()  # what is wrong from the start should show at once
            progress.note(f"first step in {meter.seconds:.1f} s")
        if (step + 1) % log_every == 0 or step + 1 == steps:
            report = meter.report()
            writer.write(step + 1, report)
            shown = {name: report[name] for name in _SHOWN}
            progress.update(step + 1, **shown)
    checkpointer.wait()
    return state, step


def described(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
