"""Trains and evaluates probe heads on a frozen encoder: one pass over the data for all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from xtra_jax.data.bad_images import BadImageLimit
from xtra_jax.errors import UserError
from xtra_jax.parallel.feed import Feed
from xtra_jax.probing import sweep
from xtra_jax.probing.results import Evaluation, History
from xtra_jax.probing.sweep import Features, HeadGroup, HeadStates, ProbeState, Recipe

Batch = Mapping[str, np.ndarray]
Put = Callable[[dict[str, np.ndarray]], Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """One evaluation of all heads.

    Attributes:
        correct: examples classified correctly, int [settings] by group.
        loss: mean cross-entropy, [settings] by group.
        total: examples evaluated; each counts once.
        unreadable: images that could not be decoded, which are not among them.
    """

    correct: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]
    total: int
    unreadable: int


def train_probe(
    groups: Mapping[str, HeadGroup],
    features: Features,
    train_batches: Iterator[Batch],
    eval_batches: Callable[[], Iterable[Batch]],
    recipe: Recipe,
    *,
    seed: int = 0,
    put: Put = jax.device_put,
    sharding: jax.sharding.Sharding | None = None,
    bad_images: BadImageLimit | None = None,
    on_step: Callable[[int, dict[str, jax.Array]], None] = lambda step, losses: None,
    on_evaluation: Callable[[int, Scores], None] = lambda step, scores: None,
) -> tuple[ProbeState, list[History]]:
    """Trains every head of every group and evaluates them as the recipe says.

    The result is a function of the arguments alone: the same seed gives the same numbers.

    Args:
        groups: the heads, by a name of the caller's choice.
        features: maps uint8 images [batch, size, size, 3] and a random key to `{name: features}`,
          one entry per group; called inside the compiled step. The key is another one in every
          step and None in evaluation. Hand weights over with
          `jax.tree_util.Partial(function, weights)`, on the devices already: they are then
          arguments of the compiled program, where a closure would make them constants in it.
        train_batches: endless; a batch is a dictionary of host arrays, of which `image`, `label`,
          `weight` and `index` are used (`index` -1 where an entry is padding).
        eval_batches: called for every evaluation; returns one pass over the evaluation examples.
        recipe: length, schedule, optimizer.
        seed: of the heads' initial weights and of the features' keys.
        put: brings the arrays of a batch to the devices, as a sharding over a mesh wants it. The
          batch normalisations and losses are those of the whole global batch.
        sharding: where the heads live on that mesh, normally replicated; None for a single device.
        bad_images: ends the training when too many images are bad.
        on_step: called with the number of completed steps and the losses, [settings] by group,
          still on the device: reading them every time would hold the device up.
        on_evaluation: called with the number of completed steps and the scores.

    Returns:
        The final state and one history per head, in the order of groups and settings.

    Raises:
        UserError: for a label that is not one of a head's classes, and for an evaluation without
          a readable example.
        RunFailed: too many images are bad.
    """
    placed = {"out_shardings": sharding}
    state = jax.jit(lambda: sweep.init_state(groups, recipe, seed), **placed)()
    train_step = jax.jit(sweep.make_train_step(groups, recipe, seed), donate_argnums=0, **placed)
    eval_step = jax.jit(sweep.make_eval_step(groups), **placed)
    features = _as_argument(features)

    evaluations = {(name, i): [] for name in groups for i in range(len(groups[name].settings))}
    losses = []
    # Counted over all devices, so that all processes of a run agree.
    count_valid = jax.jit(lambda weight: (weight > 0).sum(), **placed)
    valid = []
    with contextlib.closing(Feed(train_batches, lambda x: put(_inputs(x, groups)))) as batches:
        for step in range(1, recipe.steps + 1):
            batch = next(batches)
            state, loss = train_step(state, features, batch)
            losses.append(loss)
            jax.block_until_ready(losses[-2:-1])  # never more than one batch ahead of the device
            if bad_images is not None:
                valid.append(count_valid(batch["weight"]))
                if step == 1 or len(valid) > 1:  # at once, then one batch behind the device
                    bad_images.add(step - len(valid) + 1, int(valid.pop(0)))
            on_step(step, loss)

            if recipe.evaluates_after(step):
                scores = evaluate(groups, state.heads, features, eval_batches(), put, eval_step)
                train_loss = jax.tree.map(lambda *x: np.mean(x, axis=0), *jax.device_get(losses))
                losses = []
                for (name, i), entries in evaluations.items():
                    entries.append(
                        Evaluation(
                            step=step,
                            epoch=step / recipe.steps_per_epoch,
                            train_loss=float(train_loss[name][i]),
                            loss=float(scores.loss[name][i]),
                            correct=int(scores.correct[name][i]),
                            total=scores.total,
                        )
                    )
                on_evaluation(step, scores)

    histories = [
        History(name, groups[name].settings[i], tuple(entries))
        for (name, i), entries in evaluations.items()
    ]
    return state, histories


def evaluate(
    groups: Mapping[str, HeadGroup],
    head_states: HeadStates,
    features: Features,
    batches: Iterable[Batch],
    put: Put = jax.device_put,
    eval_step: Callable | None = None,
) -> Scores:
    """Scores every head on one pass of batches. Entries of weight 0 do not count.

    Arguments are those of `train_probe`; `eval_step` is a compiled `sweep.make_eval_step(groups)`.

    Raises:
        UserError: see `train_probe`.
    """
    eval_step = eval_step or jax.jit(sweep.make_eval_step(groups))
    features = _as_argument(features)
    counts = []
    with contextlib.closing(Feed(batches, lambda x: put(_inputs(x, groups)))) as placed:
        for batch in placed:
            counts.append(eval_step(head_states, features, batch))
            jax.block_until_ready(counts[-2:-1])
    counts = jax.device_get(counts)
    total = sum(int(count["total"]) for count in counts)
    if total == 0:
        raise UserError("The evaluation has no readable example: check the evaluation split.")
    return Scores(
        correct={name: sum(count["correct"][name] for count in counts) for name in groups},
        loss={name: sum(count["loss_sum"][name] for count in counts) / total for name in groups},
        total=total,
        unreadable=sum(int(count["unreadable"]) for count in counts),
    )


def _as_argument(features: Features) -> jax.tree_util.Partial:
    """A callable that can be an argument of a compiled function."""
    if isinstance(features, jax.tree_util.Partial):
        return features
    return jax.tree_util.Partial(features)


def _inputs(batch: Batch, groups: Mapping[str, HeadGroup]) -> dict[str, np.ndarray]:
    """What the steps need of a batch, after a look at its labels."""
    valid = batch["weight"] > 0
    labels = batch["label"]
    num_classes = min(group.num_classes for group in groups.values())
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        raise UserError(
            f"The label of record {batch['index'][wrong][0]} is {labels[wrong][0]}: a probe of "
            f"{num_classes} classes needs labels from 0 to {num_classes - 1}."
        )
    return {
        "image": batch["image"],
        "label": labels,
        "weight": batch["weight"],
        "unreadable": (batch["index"] >= 0) & ~valid,
    }
