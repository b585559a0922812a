"""The optimizer against five published AdamW steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.goldens import load, subset
from xtra_jax.training.optimizer import adamw, clip_by_global_norm, decays
from xtra_jax.training.schedule import warmup_cosine

STEPS = 5
# Decay of 0.05 and betas of (0.9, 0.95) are the published recipe's; so is this schedule.
SCHEDULE = warmup_cosine(peak=1e-3, start=1e-4, end=1e-6, steps=100, warmup_steps=10)
RECIPE = dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0)


def tree(prefix: str) -> dict:
    """The golden tensors under a prefix as our parameter trees are: nested, with our names.

    LayerNorm's one-dimensional `weight` is our `scale`; the other weights are our kernels.
    """
    nested = {}
    for name, value in subset(load("G_optimizer"), prefix).items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[{"weight": "kernel" if value.ndim > 1 else "scale"}.get(leaf, leaf)] = value
    return nested


def assert_trees_close(actual, expected, rtol, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_five_steps_give_the_published_parameters():
    optimizer = adamw(SCHEDULE, **RECIPE)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = tree("step0/param/")
    state = optimizer.init(params)
    for i in range(STEPS):
        params, state = step(params, state, tree(f"step{i}/grad_raw/"))
        assert_trees_close(params, tree(f"step{i + 1}/param/"), rtol=0, atol=1e-6)


def test_each_of_the_five_updates_agrees_and_not_only_the_parameters():
    # Parameters move by 1e-4 to 5e-4 per step, so that an error of 1e-6 in them is one of
    # several per mille in an update: start each step from the published parameters instead.
    optimizer = adamw(SCHEDULE, **RECIPE)
    state = optimizer.init(tree("step0/param/"))
    for i in range(STEPS):
        params = tree(f"step{i}/param/")
        updates, state = optimizer.update(tree(f"step{i}/grad_raw/"), state, params)
        moved = jax.tree.map(lambda new, old: new - old, tree(f"step{i + 1}/param/"), params)
        assert_trees_close(updates, moved, rtol=0, atol=3e-7)


@pytest.mark.parametrize("step", range(STEPS))
def test_clipped_gradients_and_norms_are_the_published_ones(step):
    raw = tree(f"step{step}/grad_raw/")
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(raw, clip.init(raw))
    assert_trees_close(clipped, tree(f"step{step}/grad_clipped/"), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        optax.tree.norm(raw), load("G_optimizer")["grad_norm_5steps"][step], rtol=1e-6
    )


def test_a_gradient_below_the_limit_passes_unchanged():
    gradients = {"kernel": np.float32([0.3, -0.4])}
    clipped, _ = clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    np.testing.assert_array_equal(clipped["kernel"], gradients["kernel"])


def test_the_clip_coefficient_has_pytorchs_small_number_in_its_denominator():
    gradients = {"kernel": np.float32([3e-6, -4e-6])}
    clipped, _ = clip_by_global_norm(3e-6).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(clipped["kernel"], gradients["kernel"] * 0.5, rtol=1e-5)


def test_zero_turns_clipping_off_and_leaves_the_state_layout_alone():
    params = {"kernel": jnp.ones((2, 2))}
    huge = {"kernel": jnp.full((2, 2), 1e6)}
    off = adamw(SCHEDULE, **RECIPE | {"clip_norm": 0.0})
    on = adamw(SCHEDULE, **RECIPE)
    _, state = off.update(huge, off.init(params), params)
    assert jax.tree.structure(state) == jax.tree.structure(on.init(params))
    moments = next(s for s in state if isinstance(s, optax.ScaleByAdamState))
    np.testing.assert_allclose(moments.mu["kernel"], 1e5, rtol=1e-5)


def test_exactly_the_published_names_decay():
    golden = load("G_optimizer")
    decayed = jax.tree_util.tree_map_with_path(decays, tree("step0/param/"))
    for key, expected in (("decayed_names", True), ("undecayed_names", False)):
        for name in golden[key]:
            node = decayed
            for part in name.split("."):
                node = node[part] if part in node else node.get("kernel", node.get("scale"))
            assert node is expected, name


def test_a_bias_with_several_dimensions_does_not_decay():
    params = {
        "qkv": {"kernel": jnp.ones((8, 3, 2, 4)), "bias": jnp.ones((3, 2, 4))},
        "position": jnp.ones((16, 8)),
        "query": jnp.ones((1, 8)),
        "norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
    }
    assert jax.tree_util.tree_map_with_path(decays, params) == {
        "qkv": {"kernel": True, "bias": False},
        "position": True,
        "query": True,
        "norm": {"scale": False, "bias": False},
    }


def test_decay_shrinks_only_what_decays():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}
    optimizer = adamw(lambda step: 0.1, **RECIPE)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_moments_are_float32_and_counters_stop_instead_of_overflowing():
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = adamw(SCHEDULE, **RECIPE)
    last = jnp.iinfo(jnp.int32).max
    state = jax.tree.map(
        lambda x: jnp.full_like(x, last) if x.dtype == jnp.int32 else x, optimizer.init(params)
    )
    gradients = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
    updates, state = optimizer.update(gradients, state, params)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
    assert all(x == last for x in jax.tree.leaves(state) if x.dtype == jnp.int32)
    assert np.isfinite(updates["kernel"]).all()
