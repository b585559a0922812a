"""Changes to the model that ask what a part of the step costs: for timing, never for training.

Each replaces one function while a step is traced. What pays and may be kept becomes the model's:
a step changed by most of these is another function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp

from xtra_jax.model import attention, layer_norm, linear


def _jax_gelu(plain: Callable) -> Callable:
    return lambda x: jax.nn.gelu(x, approximate=False)


def _tanh_gelu(plain: Callable) -> Callable:
    return lambda x: jax.nn.gelu(x, approximate=True)


def _no_gelu(plain: Callable) -> Callable:
    return lambda x: x


def _fast_variance(plain: Callable) -> Callable:
    def call(x):
        mean = x.mean(axis=-1, keepdims=True)
        variance = jnp.maximum(0.0, (x * x).mean(axis=-1, keepdims=True) - mean * mean)
        return mean, jax.lax.rsqrt(variance + layer_norm.EPSILON)

    return call


def _no_norm(plain: Callable) -> Callable:
    return lambda norm, x, *args, **kwargs: x.astype(norm.dtype or x.dtype)


def _no_attention(plain: Callable) -> Callable:
    return lambda qkv, *args, **kwargs: qkv[:, :, 2]


def _jax_attention(plain: Callable) -> Callable:
    def call(qkv, mask, implementation="xla"):
        query, key, value = (qkv[:, :, i] for i in range(3))
        mask = None if mask is None else jnp.asarray(mask)[None, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")

    return call


# Of each change: whose function is replaced, its name, and what makes the new one of the old one.
CHANGES = {
    "jax_gelu": (linear, "gelu", _jax_gelu),
    "gelu_tanh": (linear, "gelu", _tanh_gelu),
    "no_gelu": (linear, "gelu", _no_gelu),
    "fast_variance": (layer_norm, "statistics", _fast_variance),
    "no_norm": (layer_norm.LayerNorm, "__call__", _no_norm),
    "no_attention": (attention, "attend", _no_attention),
    "jax_attention": (attention, "attend", _jax_attention),
}


@contextlib.contextmanager
def changed(name: str) -> Iterator[None]:
    """The model under one of `CHANGES`, or as it is for "".

    Raises:
        RuntimeError: the model does not use the function any more, so that nothing was changed.
    """
    if not name:
        yield
        return
    owner, attribute, change = CHANGES[name]
    new = change(getattr(owner, attribute))
    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return new(*args, **kwargs)

    with mock.patch.object(owner, attribute, counted):
        yield
    if not calls:
        raise RuntimeError(f"{name} changes nothing: the model does not call {attribute}")
