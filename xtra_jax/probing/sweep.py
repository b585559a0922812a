"""The heads of a sweep as one training state, and the pure functions that advance and score it.

The encoder's forward pass is nearly all of a probe's cost and does not depend on the head, so a
batch goes through it once, and the heads that differ only in their settings train side by side
under one `jax.vmap`: each with its own weights, optimizer state, gradient clipping, schedule and
statistics, and each as if it were trained alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xtra_jax.errors import UserError
from xtra_jax.probing import heads
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.schedule import warmup_cosine

# Maps uint8 images [batch, size, size, 3] and a key to the features of every group, by its name.
# The key is for augmentation on the device: fresh in every training step, None in evaluation.
Features = Callable[[jax.Array, jax.Array | None], Mapping[str, jax.Array]]
HeadStates = dict[str, Any]


class Setting(NamedTuple):
    """What may differ between the heads of a group."""

    rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class HeadGroup:
    """Heads of one kind and shape, one per setting, trained together.

    Attributes:
        kind: "attentive" (features are tokens [batch, tokens, width]) or "linear" (features are
          vectors [batch, width]).
        width, num_classes: width of the features, number of classes.
        settings: one head each.
        norm: batch-normalise the features (an attentive head always does).
        num_heads, num_queries, kv_bias, output_norm: see `heads.attentive_init`; attentive only.

    Raises:
        UserError: for an unknown kind, an empty list of settings, or a `num_heads` that does not
          divide the width.
    """

    kind: str
    width: int
    num_classes: int
    settings: tuple[Setting, ...]
    norm: bool = True
    num_heads: int = 16
    num_queries: int = 1
    kv_bias: bool = False
    output_norm: bool = False

    def __post_init__(self):
        if self.kind not in ("attentive", "linear"):
            raise UserError(f"A probe is 'attentive' or 'linear', not {self.kind!r}.")
        if not self.settings:
            raise UserError(f"The {self.kind} probe has no learning rate: name at least one.")
        if self.kind == "attentive" and self.width % self.num_heads:
            raise UserError(
                f"An attentive probe of {self.num_heads} heads does not fit features of width "
                f"{self.width}: choose a number of heads that divides the width."
            )

    def init(self, key: jax.Array) -> tuple[heads.Params, heads.Stats]:
        """Draws one head."""
        shape = {"width": self.width, "num_classes": self.num_classes}
        if self.kind == "linear":
            return heads.linear_init(key, **shape, norm=self.norm)
        return heads.attentive_init(
            key,
            **shape,
            num_queries=self.num_queries,
            kv_bias=self.kv_bias,
            output_norm=self.output_norm,
        )

    def logits(self, params, stats, features, weight, *, train: bool):
        """Applies one head: logits [batch, classes] and its new statistics."""
        if self.kind == "linear":
            return heads.linear_logits(params, stats, features, weight, train=train)
        return heads.attentive_logits(
            params, stats, features, weight, num_heads=self.num_heads, train=train
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How all heads are trained; the defaults are the published ones.

    Every head follows a linear warm-up from a tenth of its rate over the first `warmup_steps` of
    `steps`, then a cosine to `end_rate`. Its rate is the one it really reaches, also without a
    warm-up, where the published scheduler starts at, and never exceeds, a tenth of the rate named.
    Gradients are clipped head by head. An evaluation follows every `eval_every` steps (0: every
    epoch) and the last step.
    """

    steps: int
    steps_per_epoch: float
    warmup_steps: int = 0
    end_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 3.0
    label_smoothing: float = 0.0
    eval_every: int = 0

    def schedule(self, rate: float) -> Callable[[jax.Array], jax.Array]:
        """The learning rate of each step for a head of this rate."""
        return warmup_cosine(
            peak=rate,
            start=rate / 10 if self.warmup_steps else rate,
            end=self.end_rate,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
        )

    def optimizer(self, rate, weight_decay):
        """AdamW at one learning rate; both arguments may be traced."""
        return adamw(
            lambda _: rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=weight_decay,
            clip_norm=self.clip_norm,
        )

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows `step` completed steps."""
        return (
            step == self.steps
            or step % (self.eval_every or max(1, round(self.steps_per_epoch))) == 0
        )


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


def make_train_step(groups: Mapping[str, HeadGroup], recipe: Recipe, seed: int):
    """Builds the pure function (state, features, batch) -> (state, losses).

    The losses are the mean over the batch for every head, [settings] by group. Seed and step
    decide the key that the features get.
    """
    _, features_key = jax.random.split(jax.random.key(seed))
    schedules = {
        name: [recipe.schedule(setting.rate) for setting in group.settings]
        for name, group in groups.items()
    }

    def train_step(state: ProbeState, features: Features, batch):
        key = jax.random.fold_in(features_key, state.step)
        extracted = features(batch["image"], key)
        new_heads, losses = {}, {}
        for name, group in groups.items():
            rates = jnp.stack([schedule(state.step) for schedule in schedules[name]])
            decays = jnp.array([setting.weight_decay for setting in group.settings])
            update = partial(_update_head, group, recipe, extracted[name], batch)
            new_heads[name], losses[name] = jax.vmap(update)(state.heads[name], rates, decays)
        return ProbeState(state.step + 1, new_heads), losses

    return train_step


def _update_head(group, recipe, features, batch, head, rate, weight_decay):
    """One optimizer step of one head: its new state and the loss before the step."""

    def loss_fn(params):
        logits, stats = group.logits(params, head["stats"], features, batch["weight"], train=True)
        loss = heads.cross_entropy(
            logits, batch["label"], batch["weight"], label_smoothing=recipe.label_smoothing
        )
        return loss, stats

    params = head["params"]
    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    optimizer = recipe.optimizer(rate, weight_decay)
    updates, opt_state = optimizer.update(grads, head["opt_state"], params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "stats": stats, "opt_state": opt_state}, loss


def make_eval_step(groups: Mapping[str, HeadGroup]):
    """Builds the pure function (head states, features, batch) -> counts of one batch.

    The result holds `total` and `unreadable`, and by group `correct` and `loss_sum` [settings].
    """

    def eval_step(head_states: HeadStates, features: Features, batch):
        extracted = features(batch["image"], None)
        label, weight = batch["label"], batch["weight"]

        def score(group, features, head):
            logits, _ = group.logits(head["params"], head["stats"], features, weight, train=False)
            loss = heads.cross_entropy(logits, label, weight)
            return heads.num_correct(logits, label, weight), loss * weight.sum()

        correct, loss_sum = {}, {}
        for name, group in groups.items():
            score_group = jax.vmap(partial(score, group, extracted[name]))
            correct[name], loss_sum[name] = score_group(head_states[name])
        return {
            "total": jnp.sum(weight > 0, dtype=jnp.int32),
            "unreadable": jnp.sum(batch["unreadable"], dtype=jnp.int32),
            "correct": correct,
            "loss_sum": loss_sum,
        }

    return eval_step
