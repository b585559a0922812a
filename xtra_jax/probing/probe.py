"""Trains probe heads on a frozen encoder: one pass over the data for all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
from jax.sharding import Mesh

from xtra_jax.data.bad_images import BadImageLimit
from xtra_jax.parallel.feed import Feed
from xtra_jax.parallel.sharding import replicated
from xtra_jax.probing import sweep
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.results import History
from xtra_jax.probing.saves import Saves
from xtra_jax.probing.scores import Batch, Put, Scores, as_argument, evaluate, inputs
from xtra_jax.probing.sweep import Features, HeadGroup, ProbeState
from xtra_jax.probing.tally import Tally


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the training came to.

    Attributes:
        state: of all heads.
        step: the last step that was taken.
        histories: one per head, in the order of groups and settings; none where it was stopped.
        test: the scores on the reported examples; None where it was stopped.
    """

    state: ProbeState
    step: int
    histories: list[History]
    test: Scores | None


def train_probe(
    groups: Mapping[str, HeadGroup],
    features: Features,
    train_batches: Callable[[int], Iterator[Batch]],
    eval_batches: Callable[[], Iterable[Batch]],
    recipe: Recipe,
    *,
    test_batches: Callable[[], Iterable[Batch]] | None = None,
    seed: int = 0,
    put: Put = jax.device_put,
    mesh: Mesh | None = None,
    heads_at_once: int = 0,
    saves: Saves | None = None,
    stopped: Callable[[int], bool] = lambda step: False,
    bad_images: BadImageLimit | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_evaluation: Callable[[int, Scores], None] = lambda step, scores: None,
) -> Trained:
    """Trains every head of every group and evaluates them as the recipe says.

    The result is a function of the arguments alone: the same seed gives the same numbers, however
    often the training was interrupted and continued from what was saved.

    Args:
        groups: the heads, by a name of the caller's choice.
        features: maps a batch on the devices and a random key to the features of every group, see
            `xtra_jax.probing.sweep.Features`; called inside the compiled step. The key is another
            one in every step and None in evaluation. Hand weights over with
            `jax.tree_util.Partial(function, weights)`, on the devices already: they are then
            arguments of the compiled program, where a closure would make them constants in it.
        train_batches: maps a number of completed steps to the batches of the steps after it,
            without end; a batch is a dictionary of host arrays, among them `label`, `weight` and
            `index` (-1 where an entry is padding).
        eval_batches: called for every evaluation; returns one pass over the examples that heads are
            chosen by.
        recipe: length, schedule, optimizer.
        test_batches: the same for the examples that the accuracy is reported on, evaluated after
            the last step; None where they are those that heads are chosen by.
        seed: of the heads' initial weights and of the features' keys.
        put: brings the arrays of a batch to the devices, as a sharding over a mesh wants it. The
            batch normalisations and losses are those of the whole global batch.
        mesh: where the heads live, as `sweep.state_shardings` says; None for a single device.
        heads_at_once: see `sweep.make_train_step`.
        saves: where the training is saved and goes on from; None for nowhere.
        stopped: asked once before every step, with the number of completed ones, whether to save
            and leave it at that.
        bad_images: ends the training when too many images are bad.
        on_step: called with the number of completed steps.
        on_evaluation: called with the number of completed steps and the scores.

    Raises:
        UserError: for a label that is not one of a head's classes, for an evaluation without a
            readable example, and for a checkpoint of other heads.
        RunFailed: too many images are bad.
    """

    def fresh() -> ProbeState:
        return sweep.init_state(groups, recipe, seed)

    shapes = jax.eval_shape(fresh)
    of_state = sweep.state_shardings(shapes, mesh) if mesh else None
    everywhere = replicated(mesh) if mesh else None
    saved = saves.restore(shapes, of_state) if saves else None
    state, found = saved or (jax.jit(fresh, out_shardings=of_state)(), None)
    tally = Tally(groups, found)
    first = int(state.step)
    how = {"heads_at_once": heads_at_once, "mesh": mesh}
    train_step = jax.jit(
        sweep.make_train_step(groups, recipe, seed, **how),
        donate_argnums=0,
        out_shardings=(of_state, everywhere),
    )
    eval_step = jax.jit(sweep.make_eval_step(groups, **how), out_shardings=everywhere)
    features = as_argument(features)

    def scores_of(batches: Iterable[Batch]) -> Scores:
        return evaluate(groups, state.heads, features, batches, put, eval_step)

    # Counted over all devices, so that all processes of a run agree.
    count_valid = jax.jit(lambda weight: (weight > 0).sum(), out_shardings=everywhere)
    valid: list[jax.Array] = []
    scores = None
    feed = Feed(train_batches(first), lambda batch: put(inputs(batch, groups)))
    with contextlib.closing(feed) as batches:
        for step in range(first, recipe.steps + 1):
            last = step == recipe.steps
            stopping = stopped(step) and not last
            # Before an evaluation, which is repeated if the training is interrupted in it.
            if saves and step > first and (last or stopping or saves.due(step)):
                saves.save(step, state, tally)
            if stopping:
                return Trained(state, step, [], None)
            if step > tally.evaluated and recipe.evaluates_after(step):
                scores = scores_of(eval_batches())
                tally.evaluate(step, step / recipe.steps_per_epoch, scores)
                on_evaluation(step, scores)
            if last:
                break
            batch = next(batches)
            state, losses = train_step(state, features, batch)
            tally.add(losses)
            if bad_images is not None:
                valid.append(count_valid(batch["weight"]))
                if step == first or len(valid) > 1:  # at once, then one batch behind the device
                    bad_images.add(step + 2 - len(valid), int(valid.pop(0)))
            on_step(step + 1)

    test = scores if test_batches is None else scores_of(test_batches())
    return Trained(state, step, tally.histories(test), test)
