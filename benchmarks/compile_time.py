"""Seconds to compile the train step, unrolled and otherwise, in turns and without any cache.

Images/s and MFU do not apply, for nothing is run; peak memory is that of compiling. Ways are those
of ours: PyTorch compiles nothing by default, and `torch.compile` only what it meets in a first
step.
"""

from __future__ import annotations

import jax

from benchmarks.cases import Way, check_ways, model
from benchmarks.device import here
from benchmarks.memory import jax_peak_mib
from benchmarks.train_step import lowered_step
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.errors import UserError
from xtra_jax.model.variants import XTRASpec

WAYS = ("ours", "ours,scan_layers", "ours,remat=full")


def compiling(spec: XTRASpec, batch_size: int, way: Way) -> tuple[Turn, dict]:
    """A turn traces, lowers and compiles."""
    jax.config.update("jax_enable_compilation_cache", False)

    def turn():
        jax.clear_caches()
        lowered_step(spec, batch_size, way)[0].compile()

    return turn, {}


def run(
    repeats: int,
    *,
    variant: str = "tiny",
    batch_size: int = 16,
    ways: tuple[str, ...] = WAYS,
    baseline: str = "",
) -> dict:
    """Times tracing, lowering and compiling together, for the ways of ours.

    Raises:
        UserError: a way or the baseline does not exist, is not ours, or cannot be compiled here.
        RunFailed: a way's process died.
    """
    check_ways(ways, baseline)
    for name in ways:
        if name.split(",")[0] == "peer":
            raise UserError(f"{name!r} has no step to compile: only ways of ours are timed here")
    spec, ours = model(variant), [Way(name) for name in ways]
    device = here()
    for way in ours:
        way.check_on(device)
    contestants = {
        way.name: Contestant(compiling, (spec, batch_size, way), way.environment, jax_peak_mib)
        for way in ours
    }
    baseline = baseline or ways[0]
    return {
        "case": f"compile the train step, {variant}, batch {batch_size}",
        "order": device.order,
        "baseline": baseline,
        "ways": race(contestants, baseline, repeats, warm_up=0, in_turns=device.in_turns),
    }
