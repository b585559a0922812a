"""The learning rate of every optimizer step: linear warm-up, then half a cosine."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(
    *, peak: float, start: float, end: float, steps: int, warmup_steps: int
) -> optax.Schedule:
    """The published schedule, as a function of the number of optimizer steps already taken.

    With T = `steps` and W = `warmup_steps`, the rate of step t (from 0) is

        t < W         start + (peak - start) * t / (W - 1)
        W <= t <= T   end + (top - end) * (1 + cos(pi * (t - W) / (T - W))) / 2
        t > T         end

    so the warm-up reaches its peak at step W - 1 and step W, the first of the cosine, has the
    peak once more. `top` is `peak`, except that without a warm-up the published scheduler
    decays from where the warm-up would have started: W = 0 means top = `start`.

    Args:
        peak: the rate at the end of the warm-up.
        start: the rate of step 0.
        end: the rate at step `steps` and after it.
        steps: length of the whole run, in optimizer steps.
        warmup_steps: how many of them belong to the warm-up.

    Returns:
        A function from a step (an int, or an integer array inside jit) to the float32 rate,
        within a few float32 roundings of the exact one, also close to the end of the cosine.
    """
    ramp = max(warmup_steps - 1, 1)
    decay = max(steps - warmup_steps, 1)
    top = peak if warmup_steps > 0 else start

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        warming = start + (peak - start) * (step / ramp)
        # (1 + cos(pi * x)) / 2 written as sin^2(pi / 2 * (1 - x)): the sum cancels as x
        # approaches 1, where float32 would keep only a few digits of a small rate.
        left = jnp.clip(steps - step, 0, decay) / decay
        cooling = end + (top - end) * jnp.sin(math.pi / 2 * left) ** 2
        return jnp.where(step < warmup_steps, warming, cooling)

    return learning_rate
