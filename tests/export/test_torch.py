"""A plain PyTorch model loads the published layout strictly, agrees with ours, and goes on."""

import numpy as np
import pytest

from tests import goldens
from tests.export.exported import code_in, exported, golden_run
from xtra_jax.interop.published import pixels_to_published
from xtra_jax.model.masks import raster_block_causal_mask
from xtra_jax.model.xtra import bind, xtra_losses

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from benchmarks.torch_peer import XTRA  # noqa: E402

CASES = {
    "B_tiny_block_hot": (goldens.tiny_spec(), {}),
    "C_causal_hot": (goldens.tiny_spec(block_size=1), {"model.block_size": 1}),
    "C_tokens2_hot": (goldens.tiny_spec(num_tokens=2), {"head.num_tokens": 2}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Name, spec and export of golden weights."""
    spec, changes = CASES[request.param]
    folder = tmp_path_factory.mktemp("export")
    run = golden_run(folder / "run", request.param, **changes)
    return request.param, spec, exported(run, folder / "out", "published")


@pytest.fixture(params=["model.safetensors", "model.pt"])
def model(request, case):
    _, spec, folder = case
    if request.param == "model.pt":
        weights = torch.load(folder / request.param, weights_only=True)["state_dict"]
    else:
        weights = load_file(folder / request.param)
    model = XTRA(spec)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def test_every_stage_and_the_loss_are_those_of_the_published_implementation(case, model):
    name, _, _ = case
    golden = goldens.load(name)
    images = torch.from_numpy(golden["images"])
    with torch.no_grad():
        stages = model(images)
        loss = model.loss(images, [stages[f"preds_{j}"] for j in range(len(model.aim_proj))])
    for stage, tensor in stages.items():
        np.testing.assert_allclose(tensor, golden[stage], rtol=0, atol=5e-5, err_msg=stage)
    np.testing.assert_allclose(loss, golden["loss_mse"], rtol=1e-6)


def test_the_predictions_and_the_loss_are_ours(case, model):
    name, spec, _ = case
    golden, ours = goldens.load(name), bind(spec, goldens.params_of(name, spec))
    patches = goldens.patches_of(golden, spec.grid)
    images = torch.from_numpy(golden["images"])
    with torch.no_grad():
        stages = model(images)
        loss = model.loss(images, [stages[f"preds_{j}"] for j in range(len(model.aim_proj))])
    for j, prediction in enumerate(ours(patches)):
        expected = pixels_to_published(np.asarray(prediction), spec.grid)
        np.testing.assert_allclose(stages[f"preds_{j}"], expected, rtol=0, atol=5e-5)
    np.testing.assert_allclose(loss, xtra_losses(ours, patches).mean(), rtol=1e-6)


def test_the_mask_is_ours(case, model):
    _, spec, _ = case
    np.testing.assert_array_equal(model.mask, raster_block_causal_mask(spec.grid))


def test_training_goes_on_from_an_export(case, model):
    images = torch.from_numpy(goldens.load(case[0])["images"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        stages = model(images)
        loss = model.loss(images, [stages[f"preds_{j}"] for j in range(len(model.aim_proj))])
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_code_of_the_model_card_loads_the_weights(case, monkeypatch):
    _, spec, folder = case
    monkeypatch.chdir(folder)
    (code,) = code_in(folder)
    found = {}
    exec(code, found)
    XTRA(spec).load_state_dict(found["weights"], strict=True)
