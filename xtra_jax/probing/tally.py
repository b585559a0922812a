"""What a probe has found out so far: it goes into the checkpoints, beside the heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from xtra_jax.probing.results import Evaluation, History
from xtra_jax.probing.scores import Scores
from xtra_jax.probing.sweep import HeadGroup

_AT_ONCE = 256  # losses that wait on the devices to be fetched


class Tally:
    """The evaluations of every head, and the sums of its training losses since the last one.

    Losses are added one by one in float64, so that the sums are the same bits wherever a run was
    interrupted between two evaluations.

    Args:
        groups: the heads.
        saved: what `to_json` gave, to go on from there.

    Attributes:
        evaluated: the step of the last evaluation; 0 before the first.
    """

    def __init__(self, groups: Mapping[str, HeadGroup], saved: dict | None = None):
        self._groups = groups
        self._pending: list[dict[str, jax.Array]] = []
        counts = {name: len(group.settings) for name, group in groups.items()}
        if saved is None:
            self.evaluated = 0
            self._steps = 0
            self._sums = {name: np.zeros(count) for name, count in counts.items()}
            self._evaluations = {name: [[] for _ in range(n)] for name, n in counts.items()}
            return
        self.evaluated, self._steps = saved["evaluated"], saved["steps"]
        self._sums = {name: np.array(saved["loss_sums"][name], np.float64) for name in counts}
        self._evaluations = {
            name: [[Evaluation(*values) for values in head] for head in saved["evaluations"][name]]
            for name in counts
        }

    def to_json(self) -> dict:
        """All of it, as JSON can hold it."""
        self._fetch()
        return {
            "evaluated": self.evaluated,
            "steps": self._steps,
            "loss_sums": {name: sums.tolist() for name, sums in self._sums.items()},
            "evaluations": {
                name: [[list(dataclasses.astuple(entry)) for entry in head] for head in heads]
                for name, heads in self._evaluations.items()
            },
        }

    def add(self, losses: dict[str, jax.Array]) -> None:
        """Takes the losses of a step, [settings] by group, which may still be being computed."""
        self._pending.append(losses)
        if len(self._pending) > _AT_ONCE:
            self._fetch()

    def evaluate(self, step: int, epoch: float, scores: Scores) -> None:
        """Takes an evaluation; the sums of losses begin anew."""
        train_loss = self.train_loss()
        for name, heads in self._evaluations.items():
            for i, head in enumerate(heads):
                head.append(scores.evaluation(name, i, step, epoch, train_loss[name][i]))
        self.evaluated, self._steps = step, 0
        for sums in self._sums.values():
            sums[:] = 0.0

    def train_loss(self) -> dict[str, np.ndarray]:
        """Mean losses since the last evaluation, [settings] by group; NaN where there are none."""
        self._fetch()
        return {
            name: sums / self._steps if self._steps else np.full_like(sums, np.nan)
            for name, sums in self._sums.items()
        }

    def histories(self, test: Scores) -> list[History]:
        """One per head, in the order of groups and settings.

        Args:
            test: the scores on the reported examples, after the last step.
        """
        found = []
        for name, group in self._groups.items():
            for i, setting in enumerate(group.settings):
                last = self._evaluations[name][i][-1]
                found.append(
                    History(
                        group=name,
                        kind=group.kind,
                        last_layers=group.features.last_layers,
                        final_norm=group.features.norm,
                        setting=setting,
                        evaluations=tuple(self._evaluations[name][i]),
                        test=test.evaluation(name, i, last.step, last.epoch, last.train_loss),
                        class_correct=test.class_correct[name][i],
                        class_total=test.class_total,
                    )
                )
        return found

    def _fetch(self) -> None:
        for losses in jax.device_get(self._pending):
            self._steps += 1
            for name, loss in losses.items():
                self._sums[name] += loss
        self._pending = []
