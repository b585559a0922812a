"""Stochastic depth on fixed-size subsets: who is kept, how often, to what effect."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.errors import UserError
from xtra_jax.model import layers
from xtra_jax.model.execution import Execution
from xtra_jax.model.flops import forward_flops, train_flops
from xtra_jax.model.grid import Grid
from xtra_jax.model.stochastic_depth import (
    add_to_subset,
    drop_path,
    kept_samples,
    subset_sizes,
)
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.model.xtra import bind, init_params, xtra_losses

SPEC = XTRASpec(
    EncoderSpec(
        Grid(16, 4, 2), width=16, depth=4, num_heads=4, drop_path=0.5, drop_path_mode="subset"
    ),
    PredictorSpec(hidden=16, width=16, depth=1, num_heads=2),
    HeadSpec(hidden=32),
)
BATCH, SHARDS = 12, 2


@pytest.mark.parametrize(
    ("depth", "rate", "samples", "sizes"),
    [
        (3, 0.2, 10, (10, 9, 8)),
        (3, 0.2, 5, (5, 5, 4)),  # 4.5 is rounded up
        (2, 0.1, 5, (5, 5)),
        (2, 0.9, 2, (2, 1)),  # 0.2 would be none
        (4, 0.5, 6, (6, 5, 4, 3)),
        (1, 0.3, 1, (1,)),  # a lone layer has rate 0
    ],
)
def test_subsets_are_the_nearest_whole_number_and_never_empty(depth, rate, samples, sizes):
    if rate == 0.1:
        with pytest.raises(UserError, match="drops none of the 5 images .* at least 6"):
            subset_sizes(depth, rate, samples)
    else:
        assert subset_sizes(depth, rate, samples) == sizes


@pytest.mark.parametrize("rate", [0.07, 0.2, 0.3, 0.5, 0.6])
def test_the_batch_that_the_error_asks_for_is_the_smallest_that_will_do(rate):
    enough = next(n for n in range(2, 100) if round(n * rate - 1e-6) > 0)
    assert subset_sizes(2, rate, enough)[1] < enough
    with pytest.raises(UserError, match=f"at least {enough},"):
        subset_sizes(2, rate, enough - 1)


def test_every_sample_is_kept_equally_often_and_shards_draw_apart():
    keys = jax.random.split(jax.random.key(0), 4000)
    rows = np.asarray(jax.vmap(lambda key: kept_samples(key, 2, 8, 6))(keys))
    assert rows.shape == (4000, 2, 6)
    assert (np.diff(rows, axis=-1) > 0).all() and rows.min() == 0 and rows.max() == 7
    kept = (rows[..., None] == np.arange(8)).any(axis=2)  # [draws, shards, samples]
    deviation = np.sqrt(0.75 * 0.25 / 4000)
    assert np.abs(kept.mean(axis=0) - 0.75).max() < 4.5 * deviation
    # Of a pair in one shard both are kept in 6 * 5 / (8 * 7) of the draws, of two shards in 9 / 16.
    together = kept.astype(float).reshape(4000, 16).T @ kept.reshape(4000, 16) / 4000
    np.testing.assert_allclose(together[0, 1:8], 30 / 56, atol=4.5 * 0.008)
    np.testing.assert_allclose(together[0, 8:], 9 / 16, atol=4.5 * 0.008)


def test_the_expectation_is_the_whole_branch_as_of_bernoulli():
    x = jax.random.normal(jax.random.key(1), (8 * 3, 5))
    keys = jax.random.split(jax.random.key(0), 4000)
    execution = Execution(batch_shards=2)

    def changed(key):
        return add_to_subset(x, jnp.tanh, 3, 3, key, execution) - x

    added = np.asarray(jax.vmap(changed)(keys)).reshape(4000, 8, 3, 5)
    expected = np.tanh(np.asarray(x)).reshape(8, 3, 5)
    # Each sample is scaled by 4 / 3 in three draws of four: a deviation of 0.58 per draw.
    np.testing.assert_allclose(added.mean(axis=0), expected, atol=4.5 * 0.58 / np.sqrt(4000))
    ratios = added / expected
    assert (np.isclose(ratios, 0) | np.isclose(ratios, 4 / 3, rtol=1e-3)).all()
    assert ((ratios[:, :, 0, 0].reshape(4000, 2, 4) > 0).sum(axis=-1) == 3).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("mode", ["bernoulli", "subset"])
def test_survivors_make_up_for_the_dropped_in_16_bits_too(mode, dtype):
    """The scale is 10 / 9, which bfloat16 rounds to 1.1094: 0.16 % of every branch, each step."""
    x = jax.random.normal(jax.random.key(1), (10 * 300, 5)).astype(dtype)
    key = jax.random.key(0)
    if mode == "bernoulli":
        found = x + drop_path(x, 300, np.float32(0.1), key)
    else:
        found = add_to_subset(x, lambda chosen: chosen, 300, 9, key)
    assert found.dtype == dtype
    found, x = (np.asarray(a, np.float64).reshape(10, -1) for a in (found, x))
    added = found - x
    survived = added.any(axis=1)
    assert 0 < survived.sum() < 10
    # Each sum is rounded by up to 2^-8 of itself, up or down, and the total by far less.
    scale = (added * x)[survived].sum() / (x[survived] ** 2).sum()
    assert scale == pytest.approx(10 / 9, rel=3e-4)


def add_where_kept(x, branch, num_tokens, kept, key, execution):
    """What `add_to_subset` does, by computing everything and dropping some of it."""
    in_shard = x.shape[0] // num_tokens // execution.batch_shards
    rows = kept_samples(key, execution.batch_shards, in_shard, kept)
    scale = (rows[..., None] == jnp.arange(in_shard)).any(axis=1).reshape(-1, 1, 1)
    added = branch(x).reshape(-1, num_tokens, x.shape[-1])
    return x + (added * scale * in_shard / kept).reshape(x.shape)


@functools.cache
def loss_and_gradients(execution, add=add_to_subset, spec=SPEC, seed=3):
    params = init_params(spec, jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (BATCH, 16, 48))

    def loss(params):
        model = bind(spec, params)
        return xtra_losses(model, patches, execution=execution, key=jax.random.key(seed)).mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "add_to_subset", add)
        return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scan_layers": True},
        {"remat": "full"},
        {"scan_layers": True, "remat": "dots"},
    ],
    ids=str,
)
def test_it_equals_dropping_from_the_whole_with_the_same_samples_kept(how):
    loss, gradients = loss_and_gradients(Execution(batch_shards=SHARDS, **how))
    plain_loss, plain = loss_and_gradients(Execution(batch_shards=SHARDS), add_where_kept)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-12)

    jax.tree.map(check, gradients, plain)


def test_draws_follow_the_key_and_differ_from_layer_to_layer():
    first, other = (loss_and_gradients(Execution(), seed=seed)[0] for seed in (3, 4))
    assert first != other


def test_flops_count_what_is_computed_and_no_more():
    whole, part = (forward_flops(SPEC, shard_size=size) for size in (0, 6))
    computed = (6 + 5 + 4 + 3) / (4 * 6)
    for name in whole.keys() - {"total"}:
        share = computed if name.startswith("encoder_") else 1
        assert part[name] == pytest.approx(whole[name] * share, abs=1)
    assert part["total"] == sum(part[name] for name in part.keys() - {"total"})
    assert train_flops(SPEC, shard_size=6) < train_flops(SPEC)
    encoder = dataclasses.replace(SPEC.encoder, drop_path_mode="bernoulli")
    bernoulli = dataclasses.replace(SPEC, encoder=encoder)
    assert train_flops(bernoulli, shard_size=6) == train_flops(bernoulli)
