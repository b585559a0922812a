"""Compiling the train step of a config for devices that aren't there."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xtra_jax.config import model_spec
from xtra_jax.errors import RunFailed
from xtra_jax.parallel.hlo import Module
from xtra_jax.parallel.mesh import check_batch, num_batch_shards
from xtra_jax.parallel.program import Memory, memory, module_of
from xtra_jax.parallel.topologies import Topology
from xtra_jax.training.compilation import signs_of_life
from xtra_jax.training.recipe import make_optimizer, make_schedule
from xtra_jax.training.train_program import abstract_state, lower_train_step

NOTE_EVERY = 30.0  # seconds between signs of life while the compiler is at work

# How XLA's TPU compiler says that a program doesn't fit, in libtpu 0.0.48 and before.
_REFUSALS = (
    r"for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A train step that was compiled, or that the compiler refused for want of memory.

    Attributes:
        batch_size: of all devices together, per optimizer step.
        per_chip: images at once on a chip; on the chips that share them where mesh.tensor > 1.
        seconds: that tracing and compiling took.
        required: bytes per chip: the program's peak, or what the refusal names; None if neither.
        available: bytes per chip that there are for it.
        memory, module: of the compiled program; None if refused.
    """

    batch_size: int
    per_chip: int
    seconds: float
    required: int | None
    available: int
    memory: Memory | None = None
    module: Module | None = None

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.required <= self.available


def compile_step(
    config: ConfigDict, topology: Topology, mesh: Mesh, steps: int, note: Callable[[str], None]
) -> Attempt:
    """Compiles the train step that a run of this config would compile.

    Args:
        mesh: over the topology's devices.
        steps: of the run, for its schedule.
        note: is told every half minute that it goes on.

    Raises:
        UserError: the batch doesn't divide over the mesh.
        RunFailed: the compiler refuses the program, and not for want of memory.
    """
    check_batch(config.batch_size, mesh, config.accumulate)
    spec = model_spec(config)
    schedule = make_schedule(config, steps)
    optimizer = make_optimizer(config, schedule)
    per_chip = config.batch_size // (num_batch_shards(mesh) * config.accumulate)
    facts = dict(batch_size=config.batch_size, per_chip=per_chip)
    begin = time.monotonic()
    doing = f"compiling for {topology.name}, {per_chip} images per chip"
    with signs_of_life(doing, note, NOTE_EVERY):
        state = abstract_state(config, spec, optimizer, mesh)
        lowered = lower_train_step(config, spec, optimizer, schedule, state, mesh)
        try:
            compiled = _compiled(lowered, topology)
        except jax.errors.JaxRuntimeError as error:
            required, available = refused(str(error), topology)
            return Attempt(
                **facts,
                seconds=time.monotonic() - begin,
                required=required,
                available=available or topology.accelerator.memory,
            )
    seconds = time.monotonic() - begin
    found = memory(compiled)
    return Attempt(
        **facts,
        seconds=seconds,
        required=found.peak,
        available=topology.accelerator.memory,
        memory=found,
        module=module_of(compiled),
    )


def _compiled(lowered: jax.stages.Lowered, topology: Topology) -> jax.stages.Compiled:
    options = topology.compiler_options
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "Failed to get configs" not in str(error):
            raise
        # Triton has no kernel for some matrix products of odd sizes, and without a GPU XLA doesn't
        # find that out in time to leave them to cuBLAS.
        return lowered.compile(compiler_options={**options, "xla_gpu_enable_triton_gemm": False})


def refused(message: str, topology: Topology) -> tuple[int | None, int | None]:
    """The bytes required and available that a compiler's refusal names, None where it doesn't.

    Raises:
        RunFailed: the message is about something else than memory.
    """
    for pattern in _REFUSALS:
        if found := re.search(pattern, message):
            required, unit, available, available_unit = found.groups()
            return (
                int(float(required) * _UNITS[unit]),
                int(float(available) * _UNITS[available_unit]),
            )
    if "RESOURCE_EXHAUSTED" in message:
        return None, None
    reason = (message.splitlines() or ["no reason given"])[0]
    raise RunFailed(f"the compiler refuses the train step for {topology.name}: {reason}")
