"""What a run tells of its speed, to hold the speed of its input against."""

from __future__ import annotations

import dataclasses
import statistics

from xtra_jax.errors import UserError
from xtra_jax.training.telemetry import read_metrics

_LAST_LINES = 100  # of the metrics, so that what a run did long ago does not count


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Medians over the last lines of a run's metrics.

    Attributes:
        input_wait: share of the time spent waiting for input.
    """

    workdir: str
    images_per_s: float
    input_wait: float

    @property
    def images_per_s_without_waiting(self) -> float:
        """What it would take in if input were always there."""
        return self.images_per_s / max(1 - self.input_wait, 0.01)


def read_run(workdir: str) -> TrainingRun:
    """Reads a run's metrics.

    Raises:
        UserError: there are none.
    """
    lines = [line for line in read_metrics(workdir) if "images_per_s" in line][-_LAST_LINES:]
    if not lines:
        raise UserError(f"{workdir}/metrics.jsonl tells no images_per_s: the run took no step yet")
    return TrainingRun(
        workdir,
        statistics.median(line["images_per_s"] for line in lines),
        statistics.median(line.get("input_wait", 0.0) for line in lines),
    )
