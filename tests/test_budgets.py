"""The compiled train step against recorded budgets: what makes it dearer does not go unnoticed.

No accelerator is needed, and nothing is timed: the figures are those of the program. Where one has
changed for a reason, or for the better, `python -m tests.budgets` records it anew.
"""

from __future__ import annotations

import platform
import re

import jax
import pytest

from tests import budgets
from tests.budgets import BATCH, ENCODER_LAYERS, PREDICTOR_LAYERS, STEPS
from xtra_jax.model.flops import train_flops

# Shares of the recorded figure; the others are counts, and are to be met exactly.
TOLERANCES = {
    "product_flops": 0.02,
    "elements": 0.02,
    "traffic_bytes": 0.02,
    "temporary_bytes": 0.02,
}
AGAIN = "JAX_PLATFORMS=cpu python -m tests.budgets"


@pytest.fixture(scope="module", params=STEPS)
def step(request):
    compiled = budgets.compiled_step(request.param)
    return request.param, compiled, budgets.measured(compiled)


def recorded(name: str) -> dict[str, int]:
    if platform.machine() != "x86_64":
        pytest.skip("the budgets are those of x86-64 programs")
    of_version = budgets.recorded().get(budgets.version())
    if of_version is None:
        pytest.skip(f"no budget for jax {jax.__version__} yet: record one with `{AGAIN}`")
    return of_version[name]


def test_a_step_costs_what_is_recorded(step):
    name, _, found = step
    budget = recorded(name)
    assert found.keys() == budget.keys()
    wrong = [
        f"{key} is {value:,}, {value / budget[key] - 1:+.1%} of the recorded {budget[key]:,}"
        for key, value in found.items()
        if abs(value - budget[key]) > TOLERANCES.get(key, 0.0) * budget[key]
    ]
    assert not wrong, (
        f"the train step ({name}, jax {jax.__version__}) is not the recorded one: "
        f"{'; '.join(wrong)}. If that is meant, record it with `{AGAIN}` under each version of jax "
        "that budgets.json has, and say why in the commit"
    )


def test_a_layer_multiplies_for_attention_twice_forward_and_four_times_backward(step):
    name, _, found = step
    layers = ENCODER_LAYERS + PREDICTOR_LAYERS
    again = 2 if name == "remat_dots" else 0  # neither product has a name to be saved by
    assert found["attention_products"] == (6 + again) * layers


def test_the_products_are_the_useful_work_and_what_remat_repeats(step):
    name, _, found = step
    spec, _ = STEPS[name]
    useful = BATCH * train_flops(spec, shard_size=BATCH)
    if name == "remat_dots":
        assert useful < found["product_flops"] < 1.1 * useful
    else:
        assert found["product_flops"] == pytest.approx(useful, rel=0.01)


def test_the_weights_are_updated_in_place_and_no_copy_of_them_is_kept(step):
    _, compiled, _ = step
    program = compiled.as_text()
    weights = re.findall(r"%(state_params\S*) = f32\S* parameter\(", program)
    copied = re.findall(r" copy\((?:f32\S* )?%(state_params[^\s)]*)\)", program)
    assert len(weights) > 12 * (ENCODER_LAYERS + PREDICTOR_LAYERS)
    assert not copied


def test_the_count_of_bytes_agrees_with_the_compiler_s_own(step):
    name, compiled, found = step
    if name == "scan_layers":
        pytest.skip("the compiler counts what is in a loop once")
    assert found["traffic_bytes"] == pytest.approx(
        compiled.cost_analysis()["bytes accessed"], rel=0.02
    )
