"""The compiled train step: what its devices hold, what they tell each other, and in which dtype.

On CPUs XLA widens bfloat16, so what concerns it is read from programs compiled for a TPU, which
needs libtpu and no TPU.
"""

import math

import jax
import pytest

from xtra_jax.config import load, model_spec
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.overview import overview, totals
from xtra_jax.parallel.program import (
    aliased_arguments,
    collectives,
    host_transfers,
    memory,
    module_of,
)
from xtra_jax.parallel.topologies import devices_of, find_topology
from xtra_jax.training.pretrain import placed
from xtra_jax.training.recipe import make_optimizer, make_schedule
from xtra_jax.training.train_program import abstract_batch, abstract_state, lower_train_step

TINY = {
    "model.width": "128",
    "model.depth": "2",
    "model.num_heads": "4",
    "predictor.width": "64",
    "predictor.num_heads": "4",
    "predictor.depth": "1",
    "model.drop_path": "0.1",
    "batch_size": "32",
    "mesh.data": "1",
}
BFLOAT16 = {"model.dtype": "bfloat16", "predictor.dtype": "bfloat16"}
# Kernels are larger than this, all else is smaller.
KERNEL_BYTES = 16 * 1024
TOKENS = 32  # that the model sees: 6 x 6 without the last block


def described(devices=None, **overrides):
    """A tiny config, its mesh, and what its train step is made for."""
    overrides = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    config = load("configs/demo.py", TINY | overrides)
    mesh = make_mesh(dict(config.mesh), devices)
    spec, schedule = model_spec(config), make_schedule(config, config.steps)
    optimizer = make_optimizer(config, schedule)
    state = abstract_state(config, spec, optimizer, mesh)
    return config, spec, optimizer, schedule, state, mesh


def compiled_step(devices=None, **overrides):
    """The program, its text parsed, the abstract state, the config and the mesh."""
    config, *rest, state, mesh = described(devices, **overrides)
    compiled = lower_train_step(config, *rest, state, mesh).compile()
    return compiled, module_of(compiled), state, config, mesh


@pytest.fixture(scope="module")
def fsdp():
    """The program for eight devices that share all parameters out."""
    return compiled_step(mesh__fsdp=8)


def test_an_encoder_alone_cannot_be_pretrained():
    with pytest.raises(UserError, match="an encoder alone, and pretraining needs at least 1"):
        described(jax.devices()[:1], head__num_tokens=0)


def test_each_device_holds_its_share_of_the_state_and_no_more():
    sizes = {}
    for devices in (1, 2, 4, 8):
        *_, state, _ = described(jax.devices()[:devices], mesh__fsdp=devices)
        whole, sizes[devices] = totals(state)
        assert whole == sizes[1]
    for devices, held in sizes.items():
        assert held == pytest.approx(sizes[1] / devices, rel=0.1)


def test_the_memory_of_the_compiled_program_falls_with_the_number_of_devices(fsdp):
    compiled, _, state, config, mesh = fsdp
    batch = totals(abstract_batch(config, mesh))[1]
    of_eight = memory(compiled)
    assert of_eight.arguments - batch == totals(state)[1]

    two, _, state, config, mesh = compiled_step(jax.devices()[:2], mesh__fsdp=2)
    of_two = memory(two)
    batch_of_two = totals(abstract_batch(config, mesh))[1]
    ratio = (of_two.arguments - batch_of_two) / (of_eight.arguments - batch)
    assert ratio == pytest.approx(4, rel=0.1)
    assert of_two.peak > 2 * of_eight.peak


def test_the_new_state_is_written_into_the_memory_of_the_old_one(fsdp):
    compiled, module, state, _, _ = fsdp
    leaves = len(jax.tree.leaves(state))
    assert aliased_arguments(module) == frozenset(range(leaves))
    assert memory(compiled).aliased == totals(state)[1]


def test_nothing_passes_between_device_and_host_inside_the_step(fsdp):
    assert host_transfers(fsdp[1]) == []


def test_with_fsdp_parameters_travel_and_activations_stay(fsdp):
    _, module, state, config, _ = fsdp
    # By size, as the compiler may gather a kernel as the matrix that it is. Of positions only those
    # of the tokens that the model sees are needed, and of images their weights.
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)}
    sizes |= {TOKENS * config.model.width, TOKENS * config.predictor.width, config.batch_size}
    gathered = [c for c in collectives(module) if c.kind == "all-gather"]
    kernels = [c for c in gathered if c.bytes > KERNEL_BYTES]
    assert kernels
    for collective in gathered:
        for shape in collective.shapes:
            assert math.prod(shape) in sizes, collective


def test_with_data_parallelism_only_gradients_and_sums_travel():
    _, module, state, _, _ = compiled_step(mesh__data=8)
    found = collectives(module)
    assert {collective.kind for collective in found} == {"all-reduce"}
    parameters = totals(state.params)[0]
    assert sum(collective.bytes for collective in found) == pytest.approx(parameters, rel=0.02)


def test_tensor_parallelism_reduces_activations_once_per_branch_and_splits_heads():
    _, module, _, config, _ = compiled_step(mesh__tensor=4, mesh__data=2)
    assert not [c for c in collectives(module) if c.kind in ("all-to-all", "all-gather")]
    # 4 heads over 4 devices: each computes the attention of one, [batch / 2, 1, tokens, tokens].
    shape = (config.batch_size // 2, 1, TOKENS, TOKENS)
    results = [
        array.shape
        for computation in module.computations.values()
        for instruction in computation.values()
        for array in instruction.arrays
    ]
    assert any(sorted(shape) == sorted(result) for result in results if len(result) == 4)
    whole = (config.batch_size // 2, 4, TOKENS, TOKENS)
    assert not any(sorted(whole) == sorted(result) for result in results)


def test_the_overview_lists_every_parameter_with_what_a_device_holds_of_it():
    *_, state, _ = described(mesh__fsdp=4, mesh__tensor=2)
    text = overview(state.params)
    assert "encoder/layers/00-01/attention/qkv/kernel" in text
    (line,) = (line for line in text.splitlines() if "layers/00-01/mlp/fc1/kernel" in line)
    assert "2 x [128, 512]" in line and "(fsdp, tensor)" in line
    assert line.endswith("64.00 KiB")  # 2 * 128 * 512 * 4 bytes over 8 devices
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert f"{count:,} parameters" in text
    assert "(-, -, tensor, -)" not in text  # nothing is split by less than it could be


def test_what_the_mesh_does_not_divide_is_told_below_the_table():
    *_, state, _ = described(mesh__tensor=8)
    table, told = placed(state).split("with the optimizer's state")
    assert "encoder/layers/00-01/attention/qkv/kernel" in table
    assert "mesh.tensor=8 does not divide" in told
    assert "encoder/layers/*/attention/qkv/kernel" in told and "mlp" not in told
    *_, state, _ = described(mesh__data=2, mesh__tensor=4)
    assert "does not divide" not in placed(state)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def on_tpu(request):
    """The bfloat16 step compiled for eight TPU chips, and the dtype its gradients are summed in."""
    pytest.importorskip("libtpu")
    overrides = BFLOAT16 | {"mesh.fsdp": "8", "optim.reduce_dtype": request.param}
    compiled, module, state, _, _ = compiled_step(devices_of(find_topology("v5e:2x4")), **overrides)
    return compiled, module, state, request.param


def test_in_bfloat16_no_kernel_is_gathered_in_float32(on_tpu):
    _, module, _, _ = on_tpu
    gathered = [c for c in collectives(module) if c.kind == "all-gather"]
    kernels = [c for c in gathered if max(map(math.prod, c.shapes)) * 2 > KERNEL_BYTES]
    assert kernels and {c.dtype for c in kernels} == {"bf16"}


def test_gradients_are_summed_over_devices_in_the_dtype_asked_for(on_tpu):
    _, module, _, dtype = on_tpu
    # A product whose sum travels around the ring with it, permutes what a reduction would sum.
    summing = ("all-reduce", "reduce-scatter", "collective-permute")
    summed = [
        c
        for c in collectives(module)
        if c.kind in summing
        for shape in c.shapes
        # Biases are smaller, and what has a row for every token is a table of positions.
        if math.prod(shape) > 1024 and shape[0] != TOKENS
    ]
    large = {c.dtype for c in summed if c.dtype in ("f32", "bf16")}
    assert large == {{"float32": "f32", "bfloat16": "bf16"}[dtype]}


def test_on_tpus_too_the_state_is_donated_and_the_host_left_alone(on_tpu):
    compiled, module, state, _ = on_tpu
    assert aliased_arguments(module) == frozenset(range(len(jax.tree.leaves(state))))
    assert memory(compiled).aliased >= totals(state)[1]
    assert host_transfers(module) == []
