"""The heads of a sweep as one training state, and the pure functions that advance and score it.

The encoder's forward pass is nearly all of a probe's cost and does not depend on the head, so a
batch goes through it once, and the heads that differ only in their settings train side by side
under one `jax.vmap`: each with its own weights, optimizer state, gradient clipping, schedule and
statistics, and each as if it were trained alone. Groups that look at the same features share them
and their moments, and all features come from the same pass.

A batch is a dictionary of arrays on the devices. The features read what they need of it (`image`,
or what a cache has in its place); the steps read `label` int [batch], `weight` float32 [batch],
0 for padding and for what could not be decoded, and in evaluation `unreadable` bool [batch].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtra_jax.errors import UserError
from xtra_jax.parallel.sharding import shardings
from xtra_jax.probing import heads
from xtra_jax.probing.features import FeatureSpec
from xtra_jax.probing.recipe import Recipe

# Maps a batch and a key to the features of every group: all that `groups` name, by their specs.
# The key is for augmentation on the device: fresh in every training step, None in evaluation.
Features = Callable[[Mapping[str, jax.Array], jax.Array | None], Mapping[FeatureSpec, jax.Array]]
HeadStates = dict[str, Any]

# How the state lies on a mesh. The axis of the settings, the first, stays whole: a list of seven or
# nine rates seldom divides over devices, and the heads of a chunk should be on all of them. Kernels
# and their moments, which are nearly all bytes, are split along the features' width like the
# encoder's. Queries, biases and statistics are whole everywhere: a few kilobytes per head.
RULES = (
    (r"kernel$", PartitionSpec(None, "fsdp", None)),
    (r"(query|bias|mean|var|count|step)$", PartitionSpec()),
)


class Setting(NamedTuple):
    """What may differ between the heads of a group."""

    rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class HeadGroup:
    """Heads of one kind and shape, one per setting, trained together.

    Attributes:
        kind: "attentive" (features are tokens [batch, tokens, width]) or "linear" (features are
          pooled, [batch, width]).
        features: what the heads look at.
        width, num_classes: width of the features, number of classes.
        settings: one head each.
        norm: batch-normalise the features (an attentive head always does).
        num_heads, num_queries: see `heads.attentive_init`; attentive only.

    Raises:
        UserError: for an unknown kind, an empty list of settings, or a `num_heads` that does not
          divide the width.
    """

    kind: str
    features: FeatureSpec
    width: int
    num_classes: int
    settings: tuple[Setting, ...]
    norm: bool = True
    num_heads: int = 16
    num_queries: int = 1

    def __post_init__(self):
        if self.kind not in ("attentive", "linear"):
            raise UserError(f"a probe is 'attentive' or 'linear', not {self.kind!r}")
        if not self.settings:
            raise UserError(f"the {self.kind} probe has no learning rate: name at least one")
        if self.kind == "attentive" and self.width % self.num_heads:
            raise UserError(
                f"an attentive probe of {self.num_heads} heads does not fit features of width "
                f"{self.width}: choose a number of heads that divides the width"
            )

    @property
    def name(self) -> str:
        """Such as "attentive_last6" or "linear_last1_norm"."""
        norm = "_norm" if self.features.norm else ""
        return f"{self.kind}_last{self.features.last_layers}{norm}"

    def init(self, key: jax.Array) -> tuple[heads.Params, heads.Stats]:
        """Draws one head."""
        shape = {"width": self.width, "num_classes": self.num_classes}
        if self.kind == "linear":
            return heads.linear_init(key, **shape, norm=self.norm)
        return heads.attentive_init(key, **shape, num_queries=self.num_queries)

    def logits(
        self,
        params: heads.Params,
        stats: heads.Stats,
        features: jax.Array,
        weight: jax.Array,
        *,
        train: bool,
        moments: heads.Moments | None = None,
    ) -> tuple[jax.Array, heads.Stats]:
        """Applies one head: logits [batch, classes] and its new statistics."""
        logits = heads.linear_logits
        if self.kind == "attentive":
            logits = partial(heads.attentive_logits, num_heads=self.num_heads)
        return logits(params, stats, features, weight, train=train, moments=moments)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ProbeState:
    """All that a step changes: the number of steps taken, and the heads.

    `heads` maps a group's name to `params`, `stats` and `opt_state`, stacked over its settings.
    """

    step: jax.Array
    heads: HeadStates


def init_state(groups: Mapping[str, HeadGroup], recipe: Recipe, seed: int) -> ProbeState:
    """Draws the heads. Those of a group start from the same weights, so only settings differ."""
    init_key, _ = jax.random.split(jax.random.key(seed))

    def stacked(group: HeadGroup) -> HeadStates:
        params, stats = group.init(init_key)
        head = {
            "params": params,
            "stats": stats,
            "opt_state": recipe.optimizer(0.0, 0.0).init(params),
        }
        count = len(group.settings)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), head)

    return ProbeState(
        step=jnp.zeros((), jnp.int32),
        heads={name: stacked(group) for name, group in groups.items()},
    )


def state_shardings(state: ProbeState, mesh: Mesh) -> ProbeState:
    """The sharding of every array of a state, or of its shapes; see `RULES`."""
    return shardings(state, mesh, RULES)


def make_train_step(
    groups: Mapping[str, HeadGroup],
    recipe: Recipe,
    seed: int,
    *,
    heads_at_once: int = 0,
    mesh: Mesh | None = None,
):
    """Builds the pure function (state, features, batch) -> (state, losses).

    The losses are the mean over the batch for every head, [settings] by group. Seed and step
    decide the key that the features get. Donate the state: it is then updated in place.

    Args:
        heads_at_once: heads of a group whose gradients are computed at a time, one such chunk after
          another; 0 for all. It bounds the memory for activations (state, gradients and features
          come on top), and changes results by no more than rounding.
        mesh: that the state lies on as `state_shardings` says. Every device then holds the heads of
          a chunk whole while it computes with them on its own share of the batch.
    """
    _, features_key = jax.random.split(jax.random.key(seed))
    schedules = {
        name: [recipe.schedule(setting.rate) for setting in group.settings]
        for name, group in groups.items()
    }

    def train_step(state: ProbeState, features: Features, batch):
        key = jax.random.fold_in(features_key, state.step)
        extracted = features(batch, key)
        specs = {group.features for group in groups.values()}
        moments = {spec: heads.batch_moments(extracted[spec], batch["weight"]) for spec in specs}
        new_heads, losses = {}, {}
        for name, group in groups.items():
            rates = jnp.stack([schedule(state.step) for schedule in schedules[name]])
            decays = jnp.array([setting.weight_decay for setting in group.settings])
            spec, head = group.features, state.heads[name]
            gradients = partial(
                _gradients, group, recipe, extracted[spec], moments[spec], batch, mesh
            )
            grads, stats, losses[name] = _in_chunks(gradients, _computed(head), heads_at_once)
            params, opt_state = jax.vmap(partial(_update, recipe))(
                grads, head["opt_state"], head["params"], rates, decays
            )
            new_heads[name] = {"params": params, "stats": stats, "opt_state": opt_state}
        return ProbeState(state.step + 1, new_heads), losses

    return train_step


def _gradients(group, recipe, features, moments, batch, mesh, chunk):
    """Of some heads, each by itself: gradients, new statistics, and the losses before the step."""

    def loss_fn(params, stats):
        logits, stats = group.logits(
            params, stats, features, batch["weight"], train=True, moments=moments
        )
        loss = heads.cross_entropy(
            logits, batch["label"], batch["weight"], label_smoothing=recipe.label_smoothing
        )
        return loss, stats

    gradients = jax.vmap(jax.value_and_grad(loss_fn, has_aux=True))
    (losses, stats), grads = gradients(_whole(chunk["params"], mesh), chunk["stats"])
    if mesh is not None:
        grads = jax.lax.with_sharding_constraint(grads, shardings(grads, mesh, RULES))
    return grads, stats, losses


def _update(recipe, grads, opt_state, params, rate, weight_decay):
    """One optimizer step of one head."""
    optimizer = recipe.optimizer(rate, weight_decay)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _computed(head: dict) -> dict:
    """What logits are computed from."""
    return {"params": head["params"], "stats": head["stats"]}


def _whole(params: heads.Params, mesh: Mesh | None) -> heads.Params:
    """Parameters as all devices compute with them: left alone, features might be sent instead."""
    if mesh is None:
        return params
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def _in_chunks(function, stacked, at_once: int):
    """`function` of stacked heads, computed for at most so many of them at a time (0: for all).

    It is `jax.lax.map` with a `batch_size`, which would copy all that it reads and writes where the
    number of heads is no multiple of it. What is read here is not written: a loop over the state
    itself would keep copies of the moments.
    """
    count = len(jax.tree.leaves(stacked)[0])
    if not 0 < at_once < count:
        return function(stacked)

    def advance(found, start, size):
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        paste = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(paste, found, function(jax.tree.map(cut, stacked)))

    found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, stacked))
    chunks, rest = divmod(count, at_once)
    found = jax.lax.fori_loop(
        0, chunks, lambda i, found: advance(found, i * at_once, at_once), found
    )
    return advance(found, count - rest, rest) if rest else found


def make_eval_step(
    groups: Mapping[str, HeadGroup], *, heads_at_once: int = 0, mesh: Mesh | None = None
):
    """Builds the pure function (head states, features, batch) -> counts of one batch.

    The counts are to be added up over batches. Only examples of weight above 0 count:

        total                      examples
        unreadable                 images that could not be decoded, which are not among them
        class_total                [classes], examples of each class
        correct[group]             [settings], examples whose class comes first
        correct5[group]            [settings], whose class is among the first five; only of groups
                                   of more than five classes
        loss_sum[group]            [settings], of the cross-entropies, float32
        class_correct[group]       [settings, classes], those of `correct` by their class

    Args:
        heads_at_once, mesh: see `make_train_step`.
    """
    num_classes = max(group.num_classes for group in groups.values())

    def by_class(counted, label):
        return jnp.zeros(num_classes, jnp.int32).at[label].add(counted, mode="drop")

    def score(group, features, label, weight, head):
        logits, _ = group.logits(
            _whole(head["params"], mesh), head["stats"], features, weight, train=False
        )
        right = heads.hits(logits, label, weight)
        counts = {
            "correct": jnp.sum(right, dtype=jnp.int32),
            "loss_sum": heads.cross_entropy(logits, label, weight) * weight.sum(),
            "class_correct": by_class(right, label),
        }
        if group.num_classes > 5:
            right5 = heads.hits(logits, label, weight, top=5)
            counts["correct5"] = jnp.sum(right5, dtype=jnp.int32)
        return counts

    def eval_step(head_states: HeadStates, features: Features, batch):
        extracted = features(batch, None)
        label, weight = batch["label"], batch["weight"]
        counts = {
            "total": jnp.sum(weight > 0, dtype=jnp.int32),
            "unreadable": jnp.sum(batch["unreadable"], dtype=jnp.int32),
            "class_total": by_class(weight > 0, label),
        }
        for name, group in groups.items():
            score_one = partial(score, group, extracted[group.features], label, weight)
            found = _in_chunks(jax.vmap(score_one), _computed(head_states[name]), heads_at_once)
            for what, values in found.items():
                counts.setdefault(what, {})[name] = values
        return counts

    return eval_step
