"""The schedule against the published rates, and at the ends where it has cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.goldens import load
from xtra_jax.training.schedule import warmup_cosine

PUBLISHED = {
    "f64/lr_total100_warmup10": dict(peak=1e-3, start=1e-4, end=1e-6, steps=100, warmup_steps=10),
    "f64/lr_h_probe_warmup0": dict(peak=1e-3, start=1e-4, end=1e-5, steps=1000, warmup_steps=0),
    "f64/lr_pretrain_b_scaled": dict(peak=1e-3, start=1e-4, end=1e-6, steps=1600, warmup_steps=40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_rate_of_the_published_schedules_is_reproduced(name):
    expected = load("G_optimizer")[name]
    rates = jax.jit(warmup_cosine(**PUBLISHED[name]))(jnp.arange(len(expected)))
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=0)


def test_without_a_warm_up_the_rate_never_exceeds_its_start():
    rates = warmup_cosine(peak=1.0, start=0.1, end=0.0, steps=50, warmup_steps=0)(jnp.arange(50))
    assert rates.max() == rates[0] == jnp.float32(0.1)


def test_a_warm_up_of_one_step_starts_low_and_then_peaks():
    schedule = warmup_cosine(peak=1.0, start=0.1, end=0.0, steps=50, warmup_steps=1)
    np.testing.assert_allclose([schedule(0), schedule(1)], [0.1, 1.0], rtol=1e-6)


def test_the_rate_stays_at_its_end_after_the_last_step():
    schedule = warmup_cosine(peak=1.0, start=0.1, end=0.01, steps=50, warmup_steps=5)
    assert schedule(50) == schedule(51) == schedule(2**31 - 1) == jnp.float32(0.01)


def test_a_run_that_is_all_warm_up_has_finite_rates():
    schedule = warmup_cosine(peak=1.0, start=0.1, end=0.01, steps=5, warmup_steps=5)
    np.testing.assert_allclose(schedule(jnp.arange(5)), [0.1, 0.325, 0.55, 0.775, 1.0], rtol=1e-6)
