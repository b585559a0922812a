"""AdamW as the method was published with: which parameters decay, and how gradients are clipped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def decays(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
    """Whether weight decay applies to the parameter at `path` of the parameter tree.

    It applies to everything with two or more dimensions that is not a bias, position tables
    and learned queries included. Biases are told by their name, because some of them have
    several dimensions (that of queries, keys and values is [3, heads, head width]).

    Args:
        path: the parameter's key path, as `jax.tree_util.tree_map_with_path` passes it.
        leaf: the parameter, or anything with its `ndim`.
    """
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim >= 2 and name != "bias"


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), PyTorch's coefficient.

    `optax.clip_by_global_norm` leaves out the 1e-6. The norm is the L2 norm of all gradients
    taken together.
    """

    def update(gradients, state, params=None):
        del params
        coefficient = jnp.minimum(1.0, max_norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * coefficient.astype(g.dtype), gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    mu_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay and the learning rate, in this order.

    One update is, with m and v Adam's bias-corrected moments of the clipped gradients,

        p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p)

    where the last term is present only for parameters that `decays` selects. The moments have
    the parameters' shapes and are float32 for float32 parameters, the first one if `mu_dtype` says
    so; the step counters stop at the largest int32 instead of overflowing.

    Args:
        schedule: learning rate as a function of the number of updates made, from 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: per unit of learning rate; 0 turns it off.
        clip_norm: largest global gradient norm let through unscaled; 0 turns clipping off.
        mu_dtype: in which the first moment is kept between steps, and decays; what is added to it,
            and the update made of the two, are float32.
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(decays, params)

    return optax.chain(
        # The identity keeps the optimizer state's layout the same with and without clipping.
        clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
        optax.scale_by_adam(beta1, beta2, eps, mu_dtype=jnp.dtype(mu_dtype)),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule),
    )
