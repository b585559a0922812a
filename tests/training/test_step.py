"""The train step: one device or eight, one microbatch or many, broken images or none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.orders import pseudo_random_orders
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.model.xtra import bind, xtra_losses
from xtra_jax.parallel.mesh import make_mesh, put_batch
from xtra_jax.parallel.sharding import activation_placement, replicated, shardings
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import (
    Objective,
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
)

SPEC = XTRASpec(
    EncoderSpec(Grid(16, 4, 2), width=16, depth=2, num_heads=4),
    PredictorSpec(hidden=16, width=16, depth=1, num_heads=2),
    HeadSpec(hidden=32),
)
BATCH = 16


def schedule(step):
    return 1e-2 / (1 + jnp.asarray(step, jnp.float32))


OPTIMIZER = adamw(schedule, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0)
# Without Adam's division, which turns rounding of tiny gradients into differences of order one.
SGD = optax.sgd(0.1)


def batch(seed=0, size=BATCH):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
    return {"image": images, "weight": np.ones(size, np.float32)}


def run(spec=SPEC, optimizer=SGD, steps=2, batches=None, mesh=None, **options):
    """State and metrics after a few steps from the same start."""
    step = make_train_step(spec, optimizer, schedule=schedule, **options)
    state = init_state(spec, optimizer, jax.random.key(0))
    if mesh is None:
        step = jax.jit(step)
    else:
        placement = shardings(state, mesh)
        state = jax.device_put(state, placement)
        step = jax.jit(step, out_shardings=(placement, replicated(mesh)))
    metrics = []
    for i in range(steps):
        data = batch(i) if batches is None else batches[i]
        state, values = step(state, data if mesh is None else put_batch(data, mesh))
        metrics.append(values)
    return state, jax.device_get(metrics)


def assert_same_run(ours, theirs, rtol=1e-5):
    for a, b in zip(ours[1], theirs[1], strict=True):
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=rtol)

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-12)

    jax.tree.map(check, ours[0].params, theirs[0].params)


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"fsdp": 8},
        {"data": 2, "tensor": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_eight_devices_give_the_loss_and_the_gradients_of_one(plain, sizes):
    mesh = make_mesh(sizes)
    ours = run(mesh=mesh, execution=Execution(place=activation_placement(mesh)))
    assert_same_run(ours, plain)
    kernel = ours[0].params["encoder"]["layers"]["00"]["mlp"]["fc1"]["kernel"]
    shards = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // shards


def test_accumulated_microbatches_equal_the_whole_batch(plain):
    assert_same_run(run(accumulate=4), plain)


def test_accumulation_counts_every_valid_image_once_however_they_are_spread():
    batches = [batch(i) for i in range(2)]
    for data in batches:
        data["weight"][[0, 1, 2, 9]] = 0
    assert_same_run(run(batches=batches, accumulate=4), run(batches=batches))


def test_an_image_of_weight_0_changes_nothing_whatever_it_holds():
    broken, other = batch(), batch()
    broken["weight"][3] = other["weight"][3] = 0
    broken["image"][3] = 0
    ours, theirs = run(batches=[broken], steps=1), run(batches=[other], steps=1)
    assert_same_run(ours, theirs, rtol=1e-7)
    assert ours[1][0]["images"] == BATCH - 1


def test_a_batch_of_only_broken_images_leaves_finite_parameters():
    empty = batch()
    empty["weight"][:] = 0
    state, (metrics,) = run(batches=[empty], steps=1)
    assert metrics["loss"] == 0 and metrics["images"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_loss_is_the_mean_over_images_and_metrics_tell_the_rate():
    _, (first, second) = run(optimizer=OPTIMIZER)
    state = init_state(SPEC, OPTIMIZER, jax.random.key(0))
    patches = normalise_patches(patchify(batch()["image"], SPEC.grid), *_imagenet())
    expected = xtra_losses(bind(SPEC, state.params), patches).mean()
    np.testing.assert_allclose(first["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose([first["lr"], second["lr"]], [1e-2, 5e-3])


def _imagenet():
    return Objective().mean, Objective().std


def test_scan_and_remat_take_the_same_steps(plain):
    ours = run(execution=Execution(scan_layers=True, remat="full"))
    assert_same_run(ours, plain)
    same = jax.tree.structure(ours[0].params) == jax.tree.structure(plain[0].params)
    assert same


def test_stochastic_depth_is_a_function_of_seed_and_step():
    spec = dataclasses.replace(SPEC, encoder=dataclasses.replace(SPEC.encoder, drop_path=0.5))
    same = [batch(), batch()]
    ours, again, other = (run(spec, steps=2, batches=same, seed=seed)[1] for seed in (3, 3, 4))
    assert ours == again
    assert ours[0]["loss"] != other[0]["loss"]


def test_the_pseudo_random_order_is_drawn_anew_each_step_and_fixed_in_evaluation():
    orders = pseudo_random_orders(SPEC.grid.num_blocks)
    zero = optax.sgd(0.0)
    same = [batch()] * 6
    _, metrics = run(optimizer=zero, steps=6, batches=same, orders=orders)
    losses = {round(float(m["loss"]), 6) for m in metrics}
    assert len(losses) > 1
    state = init_state(SPEC, zero, jax.random.key(0))
    patches = normalise_patches(patchify(same[0]["image"], SPEC.grid), *_imagenet())
    of_each = [
        float(xtra_losses(bind(SPEC, state.params), patches, order=o).mean()) for o in orders
    ]
    for loss in losses:
        assert np.isclose(of_each, loss, rtol=1e-5).any()
    total, images = make_eval_step(SPEC, orders=orders)(state.params, same[0])
    np.testing.assert_allclose(total / images, of_each[0], rtol=1e-5)


def test_evaluation_sums_losses_of_valid_images_only():
    state = init_state(SPEC, SGD, jax.random.key(0))
    step = jax.jit(make_eval_step(SPEC))
    data = batch()
    data["weight"][5:] = 0
    total, images = step(state.params, data)
    small, five = step(state.params, {k: np.resize(v[:5], v.shape) for k, v in batch().items()})
    patches = normalise_patches(patchify(data["image"][:5], SPEC.grid), *_imagenet())
    expected = xtra_losses(bind(SPEC, state.params), patches).sum()
    assert images == 5 and five == 16
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert small > total


def test_a_state_is_a_plain_pytree_with_named_fields():
    state = init_state(SPEC, OPTIMIZER, jax.random.key(0))
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths[0] == ".step" and ".params['encoder']['position']" in paths
    assert isinstance(jax.tree.map(lambda x: x, state), TrainState)
