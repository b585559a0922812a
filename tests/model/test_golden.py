"""Parity with the published implementation, tensor by tensor, on weights that show errors."""

import functools

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.interop.published import pixels_to_published, to_published
from xtra_jax.model.execution import Execution
from xtra_jax.model.masks import block_raster_order
from xtra_jax.model.patches import to_blocks
from xtra_jax.model.xtra import bind, block_targets, example_losses, reorder_blocks, xtra_losses

PREDICTION_ATOL = 5e-5
LOSS_RTOL = 1e-6
GRADIENT_RTOL = 1e-4

CASES = {
    "B_tiny_block": goldens.tiny_spec(),
    "B_tiny_block_hot": goldens.tiny_spec(),
    "C_causal_hot": goldens.tiny_spec(block_size=1),
    "C_tokens2_hot": goldens.tiny_spec(num_tokens=2),
}


def assert_gradients_equal(ours: dict, golden: dict):
    for name, expected in golden.items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=GRADIENT_RTOL * largest, err_msg=name
        )


@pytest.fixture(scope="module", params=CASES)
def case(request):
    golden, spec = goldens.load(request.param), CASES[request.param]
    return spec, goldens.params_of(request.param, spec), golden


@functools.partial(jax.jit, static_argnames="spec")
def tensors_between(params, patches, order, *, spec):
    """Encoder, projection and predictor output, block embeddings, and each head's predictions."""
    model = bind(spec, params)
    encoded = model.encoder(patches, order=order, execution=Execution())
    projected = model.projection(encoded)
    predicted = model.predictor(projected, order=order, execution=Execution())
    blocks = to_blocks(predicted, spec.grid)
    heads = [model.heads[str(j)](blocks) for j in range(spec.head.num_tokens)]
    return encoded, projected, predicted, blocks, heads


@functools.partial(jax.jit, static_argnames=("spec", "kind", "norm_pix", "drop_last_block"))
def loss_and_gradients(params, patches, order=None, *, spec, **objective):
    def loss(params):
        return xtra_losses(bind(spec, params), patches, order=order, **objective).mean()

    return jax.value_and_grad(loss)(params)


def stages(spec, params, patches, order=None):
    """Every intermediate the golden files hold, in their token order and layout."""
    grid = spec.grid
    ours = {}
    between = tensors_between(params, patches, order, spec=spec)
    encoded, projected, predicted, blocks, predictions = between
    to_raster = np.argsort(block_raster_order(grid))
    for name, tokens in (("enc_out", encoded), ("proj_out", projected)):
        ours[name] = tokens[:, to_raster]
    ours["predictor_out"] = predicted[:, to_raster]
    k2, width = grid.tokens_per_block, spec.predictor.width
    tokens_first = blocks.reshape(*blocks.shape[:2], k2, width)
    ours["block_embeds"] = tokens_first.swapaxes(2, 3).reshape(blocks.shape)
    for j, prediction in enumerate(predictions):
        ours[f"preds_{j}"] = pixels_to_published(np.asarray(prediction), grid)
    return ours


def test_every_stage_equals_the_published_one(case):
    spec, params, golden = case
    patches = goldens.patches_of(golden, spec.grid)
    for name, ours in stages(spec, params, patches).items():
        np.testing.assert_allclose(ours, golden[name], rtol=0, atol=PREDICTION_ATOL, err_msg=name)


def test_targets_equal_the_published_ones(case):
    spec, _, golden = case
    patches = goldens.patches_of(golden, spec.grid)
    for name, norm_pix in (("target_raw", False), ("target_norm", True)):
        ours = np.asarray(block_targets(patches, spec.grid, norm_pix=norm_pix))
        np.testing.assert_allclose(
            pixels_to_published(ours, spec.grid), golden[name], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("drop_last_block", [True, False])
def test_losses_and_gradients_equal_the_published_ones(case, drop_last_block):
    spec, params, golden = case
    patches = goldens.patches_of(golden, spec.grid)

    options = {"spec": spec, "drop_last_block": drop_last_block}
    loss, gradients = loss_and_gradients(params, patches, **options)
    np.testing.assert_allclose(loss, golden["loss_mse"], rtol=LOSS_RTOL)
    l1, _ = loss_and_gradients(params, patches, kind="l1", **options)
    np.testing.assert_allclose(l1, golden["loss_l1"], rtol=LOSS_RTOL)
    assert_gradients_equal(to_published(gradients, spec), goldens.subset(golden, "grad/"))


def test_every_gradient_equals_the_published_one():
    spec = goldens.tiny_spec()
    golden = goldens.load("B_tiny_block_hot")
    patches = goldens.patches_of(golden, spec.grid)
    params = goldens.params_of("B_tiny_block_hot", spec)
    _, gradients = loss_and_gradients(params, patches, spec=spec, drop_last_block=True)
    expected = goldens.subset(goldens.load("B_tiny_block_hot_allgrads"), "grad/")
    ours = to_published(gradients, spec)
    assert set(expected) == set(ours)
    assert_gradients_equal(ours, expected)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in ours.values()))
    np.testing.assert_allclose(norm, golden["grad_global_norm"], rtol=1e-5)


def test_raw_pixel_targets_give_the_published_losses_and_gradients():
    spec, golden = goldens.tiny_spec(), goldens.load("C_nonorm_hot_uses_B_hot_weights")
    params = goldens.params_of("B_tiny_block_hot", spec)
    patches = goldens.patches_of(golden, spec.grid)

    options = {"spec": spec, "norm_pix": False}
    mse, gradients = loss_and_gradients(params, patches, **options)
    np.testing.assert_allclose(mse, golden["loss_mse"], rtol=LOSS_RTOL)
    l1, _ = loss_and_gradients(params, patches, kind="l1", **options)
    np.testing.assert_allclose(l1, golden["loss_l1"], rtol=LOSS_RTOL)
    assert_gradients_equal(to_published(gradients, spec), goldens.subset(golden, "grad/"))


@pytest.mark.parametrize("index", [0, 5])
def test_the_pseudo_random_order_equals_the_published_one(index):
    spec, golden = goldens.tiny_spec(), goldens.load("D_perm_uses_B_hot_weights")
    params = goldens.params_of("B_tiny_block_hot", spec)
    images = goldens.load("B_tiny_block_hot")
    patches = goldens.patches_of(images, spec.grid)
    order = golden["block_perms"][index]
    expected = goldens.subset(golden, f"perm{index}/")
    shuffled = reorder_blocks(patches, spec.grid, order)
    ours = stages(spec, params, shuffled, order=order)
    targets = np.asarray(block_targets(shuffled, spec.grid, norm_pix=False))
    ours["target_raw"] = pixels_to_published(targets, spec.grid)
    for name in set(expected) - {"loss_mse"}:
        np.testing.assert_allclose(
            ours[name], expected[name], rtol=0, atol=PREDICTION_ATOL, err_msg=name
        )
    loss, gradients = loss_and_gradients(params, patches, order, spec=spec)
    np.testing.assert_allclose(loss, expected["loss_mse"], rtol=LOSS_RTOL)
    if index == 0:
        published = goldens.subset(golden, "grad_perm0/")
        assert_gradients_equal(to_published(gradients, spec), published)


@pytest.mark.parametrize("weights", ["B_tiny_block", "B_tiny_block_hot"])
@pytest.mark.parametrize("size", [96, 32])
def test_other_image_sizes_through_resized_positions_equal_the_published_ones(weights, size):
    spec = goldens.tiny_spec()
    golden = goldens.subset(goldens.load("E_pos_interp"), f"{weights}/")
    grid = spec.grid.resized(size)
    patches = goldens.patches_of(golden, grid, f"images_{size}")

    @jax.jit
    def encoder_output_and_loss(params):
        model = bind(spec, params)
        encoded = model.encoder(patches, grid=grid, execution=Execution())
        targets = block_targets(patches, grid, norm_pix=True)
        losses = example_losses(model(patches, grid=grid), targets, kind="mse")
        return encoded, losses.mean()

    encoded, loss = encoder_output_and_loss(goldens.params_of(weights, spec))
    in_raster = encoded[:, np.argsort(block_raster_order(grid))]
    np.testing.assert_allclose(in_raster, golden[f"enc_out_{size}"], rtol=0, atol=PREDICTION_ATOL)
    np.testing.assert_allclose(loss, golden[f"loss_mse_{size}"], rtol=LOSS_RTOL)
