"""How the heads of a study are trained: its length, each head's schedule and optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from xtra_jax.training.optimizer import adamw
from xtra_jax.training.schedule import warmup_cosine


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
