"""LayerNorm and its gradient, which is written out by hand, against those of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.model.layer_norm import normalise


def plain(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / deviation * scale + bias


def inputs(mean: float):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 2, (4, 5, 48)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 48)).astype(np.float32)
    return (x, scale, bias), rng.normal(size=x.shape).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_output_and_all_gradients_are_those_of_the_formula(mean):
    arguments, dy = inputs(mean)
    expected, derived = jax.vjp(plain, *arguments)
    found, written = jax.vjp(normalise, *arguments)
    np.testing.assert_allclose(found, expected, atol=1e-4 if mean else 1e-5)
    for ours, theirs in zip(written(dy), derived(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 if mean else 2e-5)


def test_in_bfloat16_it_computes_in_float32_and_sums_gradients_in_it():
    arguments, dy = inputs(0.0)
    x, scale, bias = (jnp.asarray(a) for a in arguments)
    rounded, dy = x.astype(jnp.bfloat16), jnp.asarray(dy, jnp.bfloat16)
    found, written = jax.vjp(normalise, rounded, scale, bias)
    expected, derived = jax.vjp(plain, rounded.astype(jnp.float32), scale, bias)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
    dx, *sums = written(dy)
    plain_dx, *plain_sums = derived(dy.astype(jnp.float32))
    assert dx.dtype == jnp.bfloat16
    # In float32 until it is rounded once, by at most 2^-8 of itself.
    np.testing.assert_allclose(dx.astype(jnp.float32), plain_dx, rtol=2**-8, atol=2e-5)
    for ours, theirs in zip(sums, plain_sums, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
