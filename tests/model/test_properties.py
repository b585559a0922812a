"""What the method promises of any weights: causality, exact shortcuts, equal ways of computing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import goldens
from xtra_jax.model.attention import attend
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.patches import denormalise_patches, normalise_patches, patchify
from xtra_jax.model.positions import bicubic_matrix, resize_positions
from xtra_jax.model.stochastic_depth import drop_path
from xtra_jax.model.xtra import bind, init_params, reorder_blocks, xtra_losses

SPEC = goldens.tiny_spec()
DROPPING = dataclasses.replace(SPEC, encoder=dataclasses.replace(SPEC.encoder, drop_path=0.5))


@pytest.fixture(scope="module")
def params():
    return goldens.params_of("B_tiny_block_hot", SPEC)


@pytest.fixture(scope="module")
def patches():
    return goldens.patches_of(goldens.load("B_tiny_block_hot"), SPEC.grid)


@functools.cache
def loss_and_gradients(execution=Execution(), drop_last_block=True, spec=SPEC, seed=None):
    """Of the mean loss; compiled once per way of computing it."""

    def loss(params, patches):
        key = None if seed is None else jax.random.key(seed)
        model = bind(spec, params)
        losses = xtra_losses(
            model, patches, drop_last_block=drop_last_block, execution=execution, key=key
        )
        return losses.mean()

    return jax.jit(jax.value_and_grad(loss))


def assert_equal_gradients(ours, theirs, rtol):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-12)

    jax.tree.map(check, ours, theirs)


@pytest.mark.parametrize("order", [None, "pseudo_random"])
def test_no_prediction_depends_on_any_pixel_of_a_later_block(params, patches, order):
    grid = SPEC.grid
    if order is not None:
        order = goldens.load("D_perm_uses_B_hot_weights")["block_perms"][3]
    patches = patches[:1] if order is None else reorder_blocks(patches[:1], grid, order)

    def prediction(patches, block):
        (predicted,) = bind(SPEC, params)(patches, order=order)
        return jnp.sum(predicted[0, block] * jnp.cos(jnp.arange(grid.block_dim)))

    gradient = jax.jit(jax.grad(prediction))
    for block in range(grid.num_blocks):
        per_token = np.abs(gradient(patches, block)).max(axis=(0, 2))
        seen = (block + 1) * grid.tokens_per_block
        assert (per_token[seen:] == 0).all()
        assert (per_token[:seen] > 0).all()


def test_dropping_the_last_block_changes_neither_loss_nor_gradients(params, patches):
    loss, gradients = loss_and_gradients(drop_last_block=True)(params, patches)
    plain_loss, plain = loss_and_gradients(drop_last_block=False)(params, patches)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    assert_equal_gradients(gradients, plain, rtol=1e-5)


def test_dropping_the_last_block_is_exact_in_float64(params, patches):
    with jax.enable_x64(True):
        spec = goldens.tiny_spec(dtype="float64", predictor_dtype="float64")
        params, patches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, patches))
        gradients = [
            loss_and_gradients(drop_last_block=drop, spec=spec)(params, patches)[1]
            for drop in (True, False)
        ]
        assert_equal_gradients(*gradients, rtol=1e-10)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(scan_layers=True),
        Execution(remat="full"),
        Execution(scan_layers=True, remat="dots"),
    ],
    ids=lambda execution: f"scan={execution.scan_layers}-remat={execution.remat}",
)
def test_scanned_and_rematerialised_equal_unrolled(params, patches, execution):
    """With stochastic depth on, so that the same samples must be dropped in the same layers."""
    plain_loss, plain = loss_and_gradients(spec=DROPPING, seed=7)(params, patches)
    loss, gradients = loss_and_gradients(execution, spec=DROPPING, seed=7)(params, patches)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    assert_equal_gradients(gradients, plain, rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"scan_layers": True, "remat": "dots"}], ids=str)
def test_a_model_with_its_attention_in_halves_equals_one_with_it_whole(how):
    grid = Grid(image_size=48, patch_size=4, block_size=3)
    spec = dataclasses.replace(SPEC, encoder=dataclasses.replace(SPEC.encoder, grid=grid))
    assert grid.num_tokens - grid.tokens_per_block >= 128
    params = init_params(spec, jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (2, grid.num_tokens, grid.patch_dim))
    loss, gradients = loss_and_gradients(Execution("halves", **how), spec=spec)(params, patches)
    plain_loss, plain = loss_and_gradients(spec=spec)(params, patches)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    assert_equal_gradients(gradients, plain, rtol=1e-5)
    leaves = zip(jax.tree.leaves(gradients), jax.tree.leaves(plain), strict=True)
    assert any((ours != theirs).any() for ours, theirs in leaves)  # another way it was


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((1000 * 3, 2))
    dropped = np.asarray(drop_path(x, 3, 0.25, jax.random.key(0))).reshape(1000, 6)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.75], rtol=1e-6)
    assert (dropped == dropped[:, :1]).all()
    assert abs((dropped[:, 0] > 0).mean() - 0.75) < 0.05


def test_stochastic_depth_is_off_without_a_key_and_differs_between_keys(params, patches):
    plain = loss_and_gradients()(params, patches)[0]
    first, again, other = (
        loss_and_gradients(spec=DROPPING, seed=seed)(params, patches)[0] for seed in (7, 7, 8)
    )
    assert first == again
    assert len({float(plain), float(first), float(other)}) == 3


def test_attention_equals_softmax_over_the_visible_tokens_alone():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 6, 3, 4)).astype(np.float32) for _ in range(3))
    mask = np.kron(np.tri(3, dtype=bool), np.ones((2, 2), bool))
    ours = attend(jnp.stack([q, k, v], axis=2), mask)
    for row in range(6):
        seen = mask[row]
        logits = np.einsum("bhd,bshd->bhs", q[:, row], k[:, seen]) / 2
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = np.einsum("bhs,bshd->bhd", weights, v[:, seen])
        np.testing.assert_allclose(ours[:, row], expected, atol=1e-6)


def test_bfloat16_compute_keeps_float32_parameters_and_stays_close(params, patches):
    spec = goldens.tiny_spec(dtype="bfloat16", predictor_dtype="bfloat16")
    fresh = init_params(spec, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    loss, gradients = loss_and_gradients(spec=spec)(fresh, patches)
    plain, _ = loss_and_gradients()(fresh, patches)
    np.testing.assert_allclose(loss, plain, rtol=5e-3)
    assert loss != plain
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_fresh_parameters_follow_the_published_initialisation():
    params = init_params(goldens.tiny_spec(), jax.random.key(3))
    encoder = params["encoder"]
    layer = encoder["layers"]["01"]
    for kernel in (layer["attention"]["qkv"], layer["mlp"]["fc1"], params["heads"]["0"]["fc1"]):
        assert abs(float(jnp.std(kernel["kernel"])) - 0.02) < 0.002
        assert (kernel["bias"] == 0).all()
    fan_in = SPEC.grid.patch_dim
    patch_std = float(jnp.std(encoder["patch_embed"]["kernel"]))
    assert abs(patch_std / (2 / fan_in) ** 0.5 - 1) < 0.05
    assert abs(float(jnp.std(encoder["position"])) - 0.02) < 0.002
    assert (layer["norm1"]["scale"] == 1).all() and (layer["norm1"]["bias"] == 0).all()
    other = encoder["layers"]["02"]["mlp"]["fc1"]["kernel"]
    assert not np.allclose(layer["mlp"]["fc1"]["kernel"], other)


def test_normalised_patches_come_back_as_the_same_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    patches = patchify(images, SPEC.grid)
    normalised = np.asarray(normalise_patches(patches, mean, std))
    in_images = (images / 255 - mean) / std
    np.testing.assert_allclose(normalised, patchify(in_images, SPEC.grid), atol=1e-5)
    back = denormalise_patches(normalised, mean, std)
    np.testing.assert_allclose(back * 255, patches, atol=1e-3)


@pytest.mark.parametrize("size", [96, 32])
@pytest.mark.parametrize("weights", ["B_tiny_block", "B_tiny_block_hot"])
def test_resized_position_tables_equal_the_published_ones(size, weights):
    table = goldens.load(weights)["param/enc.pos_embed"][0]
    expected = goldens.load("E_pos_interp")[f"{weights}/pos_{size}"][0]
    largest = np.abs(expected).max()
    np.testing.assert_allclose(
        resize_positions(table, size // 8), expected, rtol=0, atol=2e-6 * max(largest, 1)
    )


def test_a_position_table_of_the_right_size_is_left_alone():
    table = np.random.default_rng(0).normal(size=(64, 5))
    assert resize_positions(table, 8) is table
    np.testing.assert_allclose(bicubic_matrix(8, 8), np.eye(8), atol=1e-12)
    np.testing.assert_allclose(bicubic_matrix(7, 12).sum(1), 1, atol=1e-12)
