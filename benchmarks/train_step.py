"""Milliseconds per train step, and what binds it: FLOP/s reached against a matrix product's.

The default case is ViT-Ti/16 at 128 px, k = 2, batch 16, projection 1024 -> 192, predictor depth 8
with 3 heads, head hidden 1536, float32: small enough for two CPU cores.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from xtra_jax.model.execution import Execution
from xtra_jax.model.flops import train_flops
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec, variant
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, init_state, make_train_step

WIDTH, DEPTH, HEADS, RATIO = variant("tiny")
TINY_128 = XTRASpec(
    EncoderSpec(Grid(128, 16, 2), WIDTH, DEPTH, HEADS, RATIO),
    PredictorSpec(hidden=1024, width=192, depth=8, num_heads=3),
    HeadSpec(hidden=1536),
)
BATCH = 16


def compiled_step(
    spec: XTRASpec, batch_size: int, objective: Objective, execution: Execution
) -> tuple[Callable, object, dict]:
    """The compiled step, a state to donate to it, and a batch of noise."""
    optimizer = adamw(
        lambda step: 1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
    )
    step = make_train_step(spec, optimizer, objective, execution, schedule=lambda step: 1e-4)
    state = jax.jit(lambda: init_state(spec, optimizer, jax.random.key(0)))()
    size = spec.grid.image_size
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
            "weight": np.ones(batch_size, np.float32),
        }
    )
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch


def matmul_flops_per_second(width: int = 1024, repeats: int = 20) -> float:
    """What one float32 matrix product reaches here: the ceiling to hold a step against."""
    a = jnp.ones((width, width)) / width
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * width**3 / statistics.median(times)


def run(repeats: int = 15) -> dict:
    """Times the step as it ships beside the step that keeps the last block, in turns.

    Returns:
        Medians in milliseconds of either, the median of the ratio pair by pair, the step's useful
        FLOP/s, and the share of a matrix product's rate that they are.
    """
    cases = {"ours": Objective(), "all_blocks": Objective(drop_last_block=False)}
    steps = {
        name: compiled_step(TINY_128, BATCH, objective, Execution())
        for name, objective in cases.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    states = {name: state for name, (_, state, _) in steps.items()}
    for repeat in range(repeats + 2):
        for name, (step, _, batch) in steps.items():
            begin = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready((states[name], metrics))
            if repeat >= 2:
                times[name].append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(times["ours"], times["all_blocks"], strict=True)]
    seconds = statistics.median(times["ours"])
    rate = BATCH * train_flops(TINY_128) / seconds
    peak = matmul_flops_per_second()
    memory = steps["ours"][0].memory_analysis()
    return {
        "case": "train step, ViT-Ti/16 128 px, k=2, batch 16, float32",
        "milliseconds": 1000 * seconds,
        "milliseconds_min_max": [1000 * min(times["ours"]), 1000 * max(times["ours"])],
        "milliseconds_all_blocks": 1000 * statistics.median(times["all_blocks"]),
        "all_blocks_over_ours": statistics.median(ratios),
        "images_per_s": BATCH / seconds,
        "gflop_per_s": rate / 1e9,
        "matmul_gflop_per_s": peak / 1e9,
        "share_of_matmul_rate": rate / peak,
        "temporary_mib": memory.temp_size_in_bytes / 2**20 if memory else None,
        "spec": dataclasses.asdict(TINY_128),
    }
