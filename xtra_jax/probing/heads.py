"""Attentive and linear probe heads: plain functions on plain dictionaries.

A head is two dictionaries. `params` is trained; `stats` holds the running statistics of its batch
normalisations and is returned anew by every training call. What a head has follows from what is in
them: a normalisation from its entry in `stats`, a bias from its entry in `params`.

Heads are functions of one head. Many heads on the same features are one `jax.vmap`:

    jax.vmap(partial(attentive_logits, ...), in_axes=(0, 0, None, None))(params, stats, tokens, w)

Nothing that has the size of the features then depends on the head, so the features are normalised
and pooled for all heads without a copy of them per head.

The attentive head is the attention-pooling classifier of AIM (El-Nouby et al., 2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BATCH_NORM_EPS = 1e-6
BATCH_NORM_MOMENTUM = 0.1  # in PyTorch's sense: the share of the new batch
QUERY_STD = 0.02

# Heads cost next to nothing beside the encoder, so their products stay in full float32 where the
# default of a GPU or a TPU would round the factors to 10 or 7 bits.
PRECISION = jax.lax.Precision.HIGHEST

Params = dict[str, Any]
Stats = dict[str, dict[str, jax.Array]]


class Moments(NamedTuple):
    """What a batch's observations, those of weight 0 left out, have for mean and variance.

    Attributes:
        mean, var: [width]; the variance is the biased one.
        count: of the observations.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def attentive_init(
    key: jax.Array,
    *,
    width: int,
    num_classes: int,
    num_queries: int = 1,
    kv_bias: bool = False,
    output_norm: bool = False,
) -> tuple[Params, Stats]:
    """Draws an attentive head.

    Queries are N(0, 0.02); linear layers are uniform in +-1/sqrt(width), kernel and bias alike,
    which is PyTorch's default. The key is split in four: query, key, value, classifier.

    Args:
        key: a JAX random key.
        width: feature width D.
        num_classes: number of logits C.
        num_queries: learned queries Q; their outputs are averaged.
        kv_bias: whether the key and value projections have a bias. The bias of the keys adds the
          same to all scores of a query, so it has no effect and no gradient; it exists so that
          published heads map onto this tree one to one.
        output_norm: whether the pooled vector is batch-normalised before the classifier.

    Returns:
        params: `query` [Q, D], `key` and `value` (`kernel` [D, D], `bias` [D]), `classifier`
          (`kernel` [D, C], `bias` [C]).
        stats: `tokens` and, with `output_norm`, `pooled`, each with `mean` and `var` [D].
    """
    query_key, key_key, value_key, classifier_key = jax.random.split(key, 4)
    params = {
        "query": QUERY_STD * jax.random.normal(query_key, (num_queries, width), jnp.float32),
        "key": _linear_init(key_key, width, width, bias=kv_bias),
        "value": _linear_init(value_key, width, width, bias=kv_bias),
        "classifier": _linear_init(classifier_key, width, num_classes),
    }
    stats = {"tokens": _batch_norm_init(width)}
    if output_norm:
        stats["pooled"] = _batch_norm_init(width)
    return params, stats


def attentive_logits(
    params: Params,
    stats: Stats,
    tokens: jax.Array,
    weight: jax.Array,
    *,
    num_heads: int,
    train: bool,
    moments: Moments | None = None,
) -> tuple[jax.Array, Stats]:
    """Normalises the tokens, pools them with learned queries and classifies the result.

    Neither keys nor values nor normalised tokens are ever computed. A score is linear in the
    token, so the key matrix and the normalisation's scale fold into the query (what is the same
    for all tokens, such as the normalisation's mean, cancels in the softmax); the weights of a
    pool sum to one, so normalisation and value matrix apply to the pooled token; and the average
    over queries is the average of their attention. All of this is exact.

    Args:
        params, stats: a head as drawn by `attentive_init`.
        tokens: features [batch, tokens, width].
        weight: [batch], 1 for an example and 0 for padding. Padding is left out of the statistics.
        num_heads: attention heads; divides the width.
        train: normalise with the statistics of this batch and update the running ones, or
          normalise with the running ones.
        moments: of the tokens, `batch_moments(tokens, weight)`, where these are known already: they
          are the same for all heads. Only training needs them.

    Returns:
        Logits [batch, classes], and the statistics after this batch (unchanged if not `train`).
    """
    tokens = tokens.astype(jnp.float32)
    new_stats = dict(stats)
    if train and moments is None:
        moments = batch_moments(tokens, weight)
    norm, new_stats["tokens"] = _statistics(stats["tokens"], moments if train else None)
    inverse_std = jax.lax.rsqrt(norm["var"] + BATCH_NORM_EPS)

    num_queries, width = params["query"].shape
    head_width = width // num_heads
    query = params["query"].reshape(num_queries, num_heads, head_width) * head_width**-0.5
    key_kernel = params["key"]["kernel"].reshape(width, num_heads, head_width)
    folded = _einsum("qhe,dhe->qhd", query, key_kernel) * inverse_std

    scores = _einsum("qhd,btd->bqht", folded, tokens)
    attention = jax.nn.softmax(scores, axis=-1).mean(axis=1)
    pooled = _einsum("bht,btd->bhd", attention, tokens)
    pooled = (pooled - norm["mean"]) * inverse_std

    value_kernel = params["value"]["kernel"].reshape(width, num_heads, head_width)
    output = _einsum("bhd,dhe->bhe", pooled, value_kernel).reshape(-1, width)
    if "bias" in params["value"]:
        output += params["value"]["bias"]
    if "pooled" in stats:
        output, new_stats["pooled"] = batch_norm(output, stats["pooled"], weight, train=train)
    return _linear(params["classifier"], output), new_stats


def linear_init(
    key: jax.Array, *, width: int, num_classes: int, norm: bool = True
) -> tuple[Params, Stats]:
    """Draws a linear head: uniform in +-1/sqrt(width), kernel and bias alike (PyTorch's default).

    Returns:
        params: `classifier` (`kernel` [D, C], `bias` [C]).
        stats: `features` with `mean` and `var` [D]; empty without `norm`.
    """
    params = {"classifier": _linear_init(key, width, num_classes)}
    return params, {"features": _batch_norm_init(width)} if norm else {}


def linear_logits(
    params: Params,
    stats: Stats,
    features: jax.Array,
    weight: jax.Array,
    *,
    train: bool,
    moments: Moments | None = None,
) -> tuple[jax.Array, Stats]:
    """Normalises (if the head has statistics) and classifies features [batch, width].

    Arguments and result are those of `attentive_logits`.
    """
    features = features.astype(jnp.float32)
    if "features" in stats:
        features, norm = batch_norm(
            features, stats["features"], weight, train=train, moments=moments
        )
        stats = {"features": norm}
    return _linear(params["classifier"], features), stats


def batch_norm(
    x: jax.Array,
    running: dict[str, jax.Array],
    weight: jax.Array,
    *,
    train: bool,
    moments: Moments | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Batch normalisation over the last axis, without scale or bias.

    The batch is the global one: under `jax.jit` on a sharded batch the statistics are those of
    all devices together.

    Args:
        x: [batch, ..., width]; every position of an example counts as one observation.
        running: `mean` and `var` [width].
        weight: [batch], 0 for padding.
        train, moments: see `attentive_logits`.

    Returns:
        The normalised `x`, and the running statistics after this batch.
    """
    if train and moments is None:
        moments = batch_moments(x, weight)
    norm, running = _statistics(running, moments if train else None)
    return (x - norm["mean"]) * jax.lax.rsqrt(norm["var"] + BATCH_NORM_EPS), running


def batch_moments(x: jax.Array, weight: jax.Array) -> Moments:
    """Mean and variance over a batch [batch, ..., width], whose padding has weight 0 in [batch]."""
    x = x.astype(jnp.float32)
    weights = weight.astype(jnp.float32).reshape(-1, *[1] * (x.ndim - 1))
    axes = tuple(range(x.ndim - 1))
    count = jnp.sum(jnp.broadcast_to(weights, (*x.shape[:-1], 1)))
    total = jnp.maximum(count, 1)
    mean = jnp.sum(weights * x, axes) / total
    return Moments(mean, jnp.sum(weights * jnp.square(x - mean), axes) / total, count)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weight: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Mean cross-entropy over the valid examples; 0 if there is none.

    Args:
        logits: [batch, classes].
        labels: [batch], int.
        weight: [batch], 0 for padding.
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
    """
    log_probs = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    losses = (1 - label_smoothing) * nll - label_smoothing * log_probs.mean(axis=-1)
    return jnp.sum(losses * weight) / jnp.maximum(weight.sum(), 1)


def hits(logits: jax.Array, labels: jax.Array, weight: jax.Array, *, top: int = 1) -> jax.Array:
    """Which examples are valid and have their label's logit among the `top` largest, bool [batch].

    Of equal logits the first counts as larger, as it does for `argmax`. Logits that are not finite,
    as a diverged head has them, are never right. Arguments are those of `cross_entropy`.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=-1)
    return (rank < top) & jnp.all(jnp.isfinite(logits), axis=-1) & (weight > 0)


def _statistics(
    running: dict[str, jax.Array], batch: Moments | None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The statistics to normalise with, and the running ones after this batch, if there is one."""
    if batch is None:
        return running, running
    mean, var, count = batch
    # The running variance estimates the population's, hence the factor n / (n - 1).
    unbiased = var * (count / jnp.maximum(count - 1, 1))
    momentum = jnp.where(count > 0, BATCH_NORM_MOMENTUM, 0.0)  # only padding: nothing was seen
    return {"mean": mean, "var": var}, {
        "mean": running["mean"] + momentum * (mean - running["mean"]),
        "var": running["var"] + momentum * (unbiased - running["var"]),
    }


def _batch_norm_init(width: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(width, jnp.float32), "var": jnp.ones(width, jnp.float32)}


def _linear_init(key: jax.Array, fan_in: int, fan_out: int, bias: bool = True) -> Params:
    kernel_key, bias_key = jax.random.split(key)
    bound = fan_in**-0.5
    layer = {
        "kernel": jax.random.uniform(kernel_key, (fan_in, fan_out), jnp.float32, -bound, bound)
    }
    if bias:
        layer["bias"] = jax.random.uniform(bias_key, (fan_out,), jnp.float32, -bound, bound)
    return layer


def _linear(layer: Params, x: jax.Array) -> jax.Array:
    return _einsum("bd,dc->bc", x, layer["kernel"]) + layer["bias"]


def _einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, precision=PRECISION)
