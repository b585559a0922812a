"""The arithmetic of a plan: work, bounds on the time of a step, and the batch on the line."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from xtra_jax.config import load, model_spec
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.model.flops import train_flops
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.peaks import ACCELERATORS, Accelerator
from xtra_jax.parallel.program import Collective, Memory
from xtra_jax.parallel.topologies import find_topology
from xtra_jax.plan.compile import Attempt, refused
from xtra_jax.plan.estimate import largest_batch, num_examples, step_flops, step_time
from xtra_jax.plan.job import totals
from xtra_jax.training.recipe import execution_of, make_optimizer, make_schedule, objective_of
from xtra_jax.training.step import make_train_step
from xtra_jax.training.train_program import abstract_batch, abstract_state

CHIP = Accelerator(flops=100.0, float32_flops=50.0, memory=1000, bandwidth=10.0, interconnect=4.0)


def attempt(per_chip: int, required: int | None, available: int = 1000, compiled=True) -> Attempt:
    memory = Memory(0, 0, 0, 0, 0, required) if compiled else None
    return Attempt(per_chip, per_chip, 0.0, required, available, memory)


def gather(size: int, group: int = 2, count: int = 1) -> Collective:
    return Collective("all-gather", "bf16", ((size,),), size, group, count)


def test_known_data_sets_need_no_count_and_others_do():
    config = load("configs/pretrain/xtra_b16_in1k.py")
    assert num_examples(config, None) == 1_281_167
    assert num_examples(config, 7) == 7
    config.data.dataset = "folder"
    with pytest.raises(UserError, match="--examples N"):
        num_examples(config, None)
    with pytest.raises(UserError, match="at least 1"):
        num_examples(config, 0)


def test_a_run_measured_in_steps_needs_no_count_of_images():
    assert num_examples(load("configs/demo.py"), None) >= 1


def test_h14_does_the_useful_work_of_the_design_and_most_of_it_in_bfloat16():
    config = load("configs/pretrain/xtra_h14_in21k.py")
    spec = model_spec(config)
    flops = step_flops(config, spec)
    assert flops["useful"] == 2048 * train_flops(spec)
    assert flops["recomputed"] == 0
    assert flops["bfloat16"] + flops["float32"] == flops["useful"]
    assert 0.02 < flops["float32"] / flops["useful"] < 0.3


def products(jaxpr) -> int:
    """The operations of every matrix product in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = np.prod([shape[axis] for axis in contracted], dtype=int)
            total += 2 * int(size) * int(np.prod(equation.outvars[0].aval.shape, dtype=int))
        inside = list(equation.params.values())
        if equation.primitive.name == "cond":  # the same product as each platform does it
            inside = equation.params["branches"][0]
        for inner in jax.tree.leaves(inside, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_work_is_that_of_the_traced_step(remat):
    config = load("configs/demo.py", {"model.remat": remat, "batch_size": 2, "mesh.data": 1})
    spec = model_spec(config)
    mesh = make_mesh(dict(config.mesh), jax.devices()[:1])
    optimizer = make_optimizer(config, make_schedule(config, 100))
    step = make_train_step(
        spec,
        optimizer,
        objective_of(config),
        execution_of(config, mesh),
        schedule=make_schedule(config, 100),
        seed=0,
    )
    traced = jax.make_jaxpr(step)(
        abstract_state(config, spec, optimizer, mesh), abstract_batch(config, mesh)
    )
    flops = step_flops(config, spec)
    assert products(traced.jaxpr) == pytest.approx(flops["useful"] + flops["recomputed"], rel=0.03)


def test_a_step_takes_as_long_as_what_takes_longest():
    flops = {"bfloat16": 400, "float32": 100}
    time = step_time(
        flops, traffic=20, collectives=[gather(16, count=3)], accelerator=CHIP, num_chips=2
    )
    assert time.compute == (4 + 2) / 2
    assert time.memory == 2.0
    assert time.interconnect == 3 * 8 / 4.0
    assert (time.bound, time.seconds) == ("interconnect", 6.0)


def test_without_a_program_only_the_arithmetic_bounds_a_step():
    time = step_time({"bfloat16": 400, "float32": 0}, None, None, CHIP, 1)
    assert (time.memory, time.interconnect) == (None, None)
    assert (time.bound, time.seconds) == ("compute", 4.0)


def test_collectives_alike_are_added_up_and_the_largest_come_first():
    found = totals([gather(10), gather(20, count=4), gather(900, group=4)])
    assert [(one["group_size"], one["count"], one["bytes"]) for one in found] == [
        (4, 1, 900),
        (2, 5, 90),
    ]
    assert found[1]["bytes_sent"] == 45


def on_a_line(offset: int, slope: int, tried: list | None = None):
    """Programs whose peaks lie on a line, as most do."""

    def compiled(per_chip: int) -> Attempt:
        if tried is not None:
            tried.append(per_chip)
        return attempt(per_chip, offset + slope * per_chip)

    return compiled


def test_the_largest_batch_takes_two_programs_for_the_line_and_a_third_to_confirm():
    tried = []
    found = largest_batch(on_a_line(100, 10, tried), attempt(32, 420))
    assert found.per_chip == 88  # 90 would fit, and batches are multiples of 4
    assert tried == [16, 88]
    assert [one.per_chip for one in found.tried] == [32, 16, 88]


def test_a_first_program_that_does_not_fit_is_halved_until_one_does():
    tried = []
    found = largest_batch(on_a_line(100, 10, tried), attempt(512, 5220))
    assert found.per_chip == 88
    assert tried == [256, 128, 64, 32, 88]


def test_a_model_too_large_for_a_single_image_has_no_batch_that_fits():
    found = largest_batch(on_a_line(2000, 10), attempt(4, 2040))
    assert found.per_chip == 0


def test_one_image_may_be_all_that_fits():
    found = largest_batch(on_a_line(500, 400), attempt(1, 900))
    assert found.per_chip == 1


def test_where_the_line_promises_too_much_a_smaller_batch_is_confirmed():
    def bent(per_chip: int) -> Attempt:
        """Refused by the compiler beyond 60 images, without a figure."""
        fits = per_chip <= 60
        return attempt(per_chip, 100 + 10 * per_chip if fits else None, compiled=fits)

    found = largest_batch(bent, attempt(32, 420))
    assert 32 < found.per_chip <= 60
    assert any(one.fits and one.per_chip == found.per_chip for one in found.tried)


def test_a_refusal_with_its_figure_leads_to_the_next_size():
    def bent(per_chip: int) -> Attempt:
        required = 100 + 10 * per_chip + max(0, per_chip - 32) * 5
        return attempt(per_chip, required, compiled=required <= 1000)

    found = largest_batch(bent, attempt(32, 420))
    assert found.per_chip == 68  # 70.7 would
    assert [one.per_chip for one in found.tried] == [32, 16, 88, 68]


def test_a_program_fits_up_to_the_last_byte():
    assert attempt(1, 1000).fits
    assert not attempt(1, 1001).fits
    assert not attempt(1, 10, compiled=False).fits


def test_both_wordings_of_a_refusal_give_their_figures():
    v5e = find_topology("v5e:4x4")
    new = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.50G) exceeds available HBM (15.75G). HLO module: jit_train_step."
    )
    old = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 512.00M of 15.75G hbm. Exceeded hbm capacity by 2.1G."
    )
    assert refused(new, v5e) == (int(18.5 * 2**30), int(15.75 * 2**30))
    assert refused(old, v5e) == (512 * 2**20, int(15.75 * 2**30))
    assert refused("RESOURCE_EXHAUSTED: no more", v5e) == (None, None)


def test_a_refusal_for_another_reason_ends_the_plan_with_it():
    with pytest.raises(RunFailed, match="v5e:4x4: INTERNAL: no such instruction"):
        refused("INTERNAL: no such instruction\nat line 3", find_topology("v5e:4x4"))


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_accelerator_has_all_its_facts(name):
    facts = dataclasses.asdict(ACCELERATORS[name])
    assert all(value > 0 for value in facts.values())
    assert facts["float32_flops"] <= facts["flops"]
    assert facts["interconnect"] < facts["bandwidth"]
