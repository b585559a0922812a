"""One evaluation of all heads: how often each is right, over examples that each count once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from xtra_jax.errors import UserError
from xtra_jax.parallel.feed import Feed
from xtra_jax.probing import sweep
from xtra_jax.probing.results import Evaluation
from xtra_jax.probing.sweep import Features, HeadGroup, HeadStates

Batch = Mapping[str, np.ndarray]
Put = Callable[[dict[str, np.ndarray]], Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the heads make of one pass over a set of examples.

    Attributes:
        correct: examples classified correctly, int [settings] by group.
        correct5: examples whose class is among the five likeliest, int [settings] by group; only of
            groups with more than five classes.
        loss: mean cross-entropy, [settings] by group.
        class_correct: examples of each class classified correctly, int [settings, classes] by
            group.
        class_total: examples of each class, int [classes].
        total: examples evaluated; each counts once.
        unreadable: images that could not be decoded, which are not among them.
    """

    correct: dict[str, np.ndarray]
    correct5: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]
    class_correct: dict[str, np.ndarray]
    class_total: np.ndarray
    total: int
    unreadable: int

    def evaluation(
        self, group: str, head: int, step: int, epoch: float, train_loss: float
    ) -> Evaluation:
        """One head's part of it."""
        correct5 = self.correct5.get(group)
        return Evaluation(
            step=step,
            epoch=epoch,
            train_loss=float(train_loss),
            loss=float(self.loss[group][head]),
            correct=int(self.correct[group][head]),
            correct5=None if correct5 is None else int(correct5[head]),
            total=self.total,
        )


def evaluate(
    groups: Mapping[str, HeadGroup],
    head_states: HeadStates,
    features: Features,
    batches: Iterable[Batch],
    put: Put = jax.device_put,
    eval_step: Callable | None = None,
) -> Scores:
    """Scores every head on one pass of batches. Entries of weight 0 do not count.

    Args:
        features: see `xtra_jax.probing.probe.train_probe`.
        eval_step: a compiled `sweep.make_eval_step(groups)`.

    Raises:
        UserError: a label is not one of a head's classes, or no example is readable.
    """
    eval_step = eval_step or jax.jit(sweep.make_eval_step(groups))
    features = as_argument(features)
    running, sums = [], None
    with contextlib.closing(Feed(batches, lambda batch: put(inputs(batch, groups)))) as placed:
        for batch in placed:
            running.append(eval_step(head_states, features, batch))
            if len(running) > 1:  # the device works on one batch while the one before is fetched
                sums = _added(sums, running.pop(0))
    for counts in running:
        sums = _added(sums, counts)
    if sums is None or not sums["total"]:
        raise UserError("the evaluation has no readable example: check the evaluation split")
    return Scores(
        correct=sums["correct"],
        correct5=sums.get("correct5", {}),
        loss={name: sums["loss_sum"][name] / sums["total"] for name in groups},
        class_correct=sums["class_correct"],
        class_total=sums["class_total"],
        total=int(sums["total"]),
        unreadable=int(sums["unreadable"]),
    )


def as_argument(features: Features) -> jax.tree_util.Partial:
    """A callable that can be an argument of a compiled function."""
    if isinstance(features, jax.tree_util.Partial):
        return features
    return jax.tree_util.Partial(features)


def inputs(batch: Batch, groups: Mapping[str, HeadGroup]) -> dict[str, np.ndarray]:
    """What the steps need of a batch, after a look at its labels.

    Raises:
        UserError: a label is not one of a head's classes.
    """
    valid = batch["weight"] > 0
    labels = batch["label"]
    num_classes = min(group.num_classes for group in groups.values())
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        raise UserError(
            f"the label of record {batch['index'][wrong][0]} is {labels[wrong][0]}: a probe of "
            f"{num_classes} classes needs labels from 0 to {num_classes - 1}"
        )
    taken = {name: array for name, array in batch.items() if name != "index"}
    return taken | {"unreadable": (batch["index"] >= 0) & ~valid}


def _added(sums: dict | None, counts: dict) -> dict:
    """Adds the counts of a batch, in int64 and float64."""

    def widened(count):
        count = np.asarray(count)
        return count.astype(np.float64 if count.dtype.kind == "f" else np.int64)

    counts = jax.tree.map(widened, jax.device_get(counts))
    return counts if sums is None else jax.tree.map(np.add, sums, counts)
