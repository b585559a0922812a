"""Seconds to compile the train step, unrolled and otherwise, in turns and without any cache."""

from __future__ import annotations

import jax

from benchmarks.cases import Way, model
from benchmarks.train_step import lowered_step
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.model.variants import XTRASpec
from xtra_jax.training.step import Objective

WAYS = ("ours", "ours,scan_layers", "ours,remat=full")


def compiling(spec: XTRASpec, batch_size: int, way: Way) -> tuple[Turn, dict]:
    """A turn traces, lowers and compiles."""
    jax.config.update("jax_enable_compilation_cache", False)
    objective = Objective(drop_last_block=way.drop_last_block)

    def turn():
        jax.clear_caches()
        lowered_step(spec, batch_size, objective, way.execution())[0].compile()

    return turn, {}


def run(
    repeats: int,
    *,
    variant: str = "tiny",
    batch_size: int = 16,
    ways: tuple[str, ...] = WAYS,
    baseline: str = "",
) -> dict:
    """Times tracing, lowering and compiling together, for the ways of ours."""
    spec = model(variant)
    contestants = {name: Contestant(compiling, (spec, batch_size, Way(name))) for name in ways}
    baseline = baseline or ways[0]
    return {
        "case": f"compile the train step, {variant}, batch {batch_size}",
        "baseline": baseline,
        "ways": race(contestants, baseline, repeats, warm_up=0),
    }
