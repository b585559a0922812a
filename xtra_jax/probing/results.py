"""What a probe found out, per head, and the file it is kept in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from xtra_jax.errors import UserError
from xtra_jax.probing.sweep import Setting
from xtra_jax.training.storage import absolute, explained, write_text


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One head after `step` steps.

    Attributes:
        step, epoch: completed steps, and the same in epochs.
        train_loss: mean training loss since the evaluation before.
        loss: mean cross-entropy over the evaluation examples, without label smoothing.
        correct, total: examples classified correctly, and examples; each counts once.
    """

    step: int
    epoch: float
    train_loss: float
    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly, 0 to 1."""
        return self.correct / self.total


@dataclasses.dataclass(frozen=True)
class History:
    """All evaluations of one head, in the order of training."""

    group: str
    setting: Setting
    evaluations: tuple[Evaluation, ...]

    @property
    def last(self) -> Evaluation:
        """The evaluation after the last step."""
        return self.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The most accurate evaluation; the earliest of equals."""
        return max(self.evaluations, key=lambda evaluation: evaluation.accuracy)


def best_head(histories: Sequence[History], group: str) -> History:
    """The head of a group that ends most accurate; the first of equals.

    This is how the published numbers choose a learning rate, and it is a choice made on the
    examples that the accuracy is reported on: say so beside the number.
    """
    members = [history for history in histories if history.group == group]
    return max(members, key=lambda history: history.last.accuracy)


def write_results(
    path: str, histories: Sequence[History], *, config: dict[str, Any], checkpoint: str, **extra
) -> None:
    """Writes everything about a probe as JSON; an existing file is replaced as a whole or not.

    Accuracies are between 0 and 1. A loss that is not finite becomes null.

    Args:
        path: where to; missing folders are created.
        histories: one per head.
        config: the whole config of the job, as nested dictionaries.
        checkpoint: what was probed: a path, or what else tells where the encoder came from.
        **extra: further top-level entries, such as the number of unreadable images.
    """
    groups = dict.fromkeys(history.group for history in histories)
    results = {
        "checkpoint": checkpoint,
        **extra,
        "best": {name: _head(best_head(histories, name)) for name in groups},
        "selection": "the learning rate with the best last accuracy on the evaluation split",
        "heads": [
            _head(history) | {"evaluations": [_entry(e) for e in history.evaluations]}
            for history in histories
        ],
        "config": config,
    }
    with explained(f"cannot write the results to {path}"):
        absolute(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(absolute(path), json.dumps(results, indent=2, allow_nan=False) + "\n")


def check_writable(path: str) -> None:
    """Makes the folder of a results file, before hours are spent on what goes into it.

    Raises:
        UserError: the file could not be written.
    """
    target = absolute(path)
    if target.is_dir():
        raise UserError(f"cannot write the results to {path}: it is a folder; name a file in it")
    probe = target.with_name(target.name + ".tmp")
    with explained(f"cannot write the results to {path}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()


def _head(history: History) -> dict[str, Any]:
    return {
        "group": history.group,
        **history.setting._asdict(),
        "last": _entry(history.last),
        "best": _entry(history.best),
    }


def _entry(evaluation: Evaluation) -> dict[str, Any]:
    entry = dataclasses.asdict(evaluation) | {"accuracy": evaluation.accuracy}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
