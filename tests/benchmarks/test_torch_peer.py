"""The PyTorch peer computes what we compute: a comparison of two different things says nothing."""

import jax
import numpy as np
import pytest

from tests import goldens
from xtra_jax.interop.published import to_published
from xtra_jax.model.xtra import bind, xtra_losses
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, TrainState, make_train_step

torch = pytest.importorskip("torch")

from benchmarks.torch_peer import XTRA, TrainStep  # noqa: E402

NAME, SPEC = "B_tiny_block_hot", goldens.tiny_spec()
SETTINGS = {"lr": 1e-3, "weight_decay": 0.05}


def peer(**options):
    """The peer with golden weights."""
    model = XTRA(SPEC, **options)
    weights = goldens.subset(goldens.load(NAME), "param/")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=True)
    return model


@pytest.fixture(scope="module")
def ours():
    """Our loss and gradients, under the published names."""
    golden = goldens.load(NAME)
    patches = goldens.patches_of(golden, SPEC.grid)

    @jax.jit
    def loss_and_gradients(params):
        return jax.value_and_grad(lambda p: xtra_losses(bind(SPEC, p), patches).mean())(params)

    loss, gradients = loss_and_gradients(goldens.params_of(NAME, SPEC))
    return loss, to_published(gradients, SPEC)


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("drop_last_block", [True, False])
def test_the_loss_and_every_gradient_are_ours(ours, attention, drop_last_block):
    model = peer(drop_last_block=drop_last_block, attention=attention)
    loss = model.objective(torch.from_numpy(goldens.load(NAME)["images"]))
    loss.backward()
    np.testing.assert_allclose(loss.item(), ours[0], rtol=1e-6)
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert set(gradients) == set(ours[1])
    for name, gradient in gradients.items():
        expected = np.asarray(ours[1][name])
        largest = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * largest, err_msg=name)


def test_without_the_last_block_it_computes_as_few_tokens_as_we_do():
    tokens = peer(drop_last_block=True)(torch.zeros(1, 3, 64, 64))["enc_out"].shape[1]
    assert tokens == SPEC.grid.num_tokens - SPEC.grid.tokens_per_block


@pytest.mark.parametrize("residual", [None, torch.bfloat16])
def test_under_autocast_the_sum_through_the_blocks_has_the_dtype_asked_for(ours, residual):
    model, dtypes = peer(drop_last_block=True, residual=residual), set()
    for tower in (model.enc, model.predictor):
        for block in tower.blocks:
            block.register_forward_hook(lambda block, given, out: dtypes.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.objective(torch.from_numpy(goldens.load(NAME)["images"]))
    assert dtypes == {residual or torch.float32}
    np.testing.assert_allclose(loss.item(), ours[0], rtol=1e-2)


def test_three_steps_leave_the_parameters_where_ours_do():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    objective = Objective()
    normalised = (images / 255 - np.array(objective.mean)) / np.array(objective.std)
    for_peer = torch.from_numpy(normalised.astype(np.float32).transpose(0, 3, 1, 2))

    optimizer = adamw(
        lambda step: SETTINGS["lr"],
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=SETTINGS["weight_decay"],
        clip_norm=1.0,
    )
    params = goldens.params_of(NAME, SPEC)
    state = TrainState(np.int32(0), params, optimizer.init(params))
    step = jax.jit(make_train_step(SPEC, optimizer, objective, schedule=lambda step: 0.0))
    model = peer(drop_last_block=True)
    peers_step = TrainStep(model, **SETTINGS)
    for _ in range(3):
        state, metrics = step(state, {"image": images, "weight": np.ones(2, np.float32)})
        loss = peers_step(for_peer)
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
    assert metrics["grad_norm"] > 1, "nothing would be clipped"
    expected = to_published(state.params, SPEC)
    moved = np.concatenate(
        [
            np.abs(parameter.detach().numpy() - expected[name]).ravel()
            for name, parameter in model.named_parameters()
        ]
    )
    # Where a gradient is all rounding, Adam's first updates are too, and as large as any.
    assert np.quantile(moved, 0.999) < 1e-5
    assert moved.max() < SETTINGS["lr"]


def test_biases_and_norms_do_not_decay():
    step = TrainStep(peer())
    decayed, others = step.optimizer.param_groups
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"]) and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(list(step.model.parameters()))
