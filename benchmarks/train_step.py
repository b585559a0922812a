"""The train step in turns: ours, ours otherwise, and what a user would run in PyTorch instead.

The default case is ViT-Ti/16 at 128 px, k = 2, batch 16, projection 1024 -> 192, predictor depth 8
with 3 heads, head hidden 1536, float32: small enough for two CPU cores.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Way, model
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.model.execution import Execution
from xtra_jax.model.flops import train_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.parallel.peaks import peak_flops
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, init_state, make_train_step

BATCH = 16
WAYS = ("ours", "ours,all_blocks")


def lowered_step(
    spec: XTRASpec, batch_size: int, objective: Objective, execution: Execution
) -> tuple[jax.stages.Lowered, Callable, dict]:
    """The step, lowered, what makes a state to donate to it, and a batch of noise."""
    optimizer = adamw(
        lambda step: 1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
    )
    step = make_train_step(spec, optimizer, objective, execution, schedule=lambda step: 1e-4)
    make_state = jax.jit(lambda: init_state(spec, optimizer, jax.random.key(0)))
    size = spec.grid.image_size
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
            "weight": np.ones(batch_size, np.float32),
        }
    )
    lowered = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(make_state), batch)
    return lowered, make_state, batch


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


def ours(spec: XTRASpec, batch_size: int, way: Way) -> tuple[Turn, dict]:
    """A turn is one step, whose state goes into the next one."""
    spec = dataclasses.replace(spec, dtype=way.dtype, predictor_dtype=way.dtype)
    begin = time.perf_counter()
    objective = Objective(drop_last_block=way.drop_last_block)
    lowered, make_state, batch = lowered_step(spec, batch_size, objective, way.execution())
    lowered_at = time.perf_counter()
    step = lowered.compile()
    facts = {
        "lower_seconds": lowered_at - begin,
        "compile_seconds": time.perf_counter() - lowered_at,
    }
    if memory := step.memory_analysis():
        facts["program_mib"] = memory.temp_size_in_bytes / 2**20
    state = make_state()

    def turn():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return turn, facts


def peer(spec: XTRASpec, batch_size: int, way: Way) -> tuple[Turn, dict]:
    """The same in PyTorch, on a GPU where it has one, or on the cores this process may use."""
    import torch

    from benchmarks.torch_peer import XTRA, TrainStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    attention = "plain" if "plain" in way.changes else "sdpa"
    network = XTRA(spec, drop_last_block=way.drop_last_block, attention=attention).to(device)
    autocast = torch.bfloat16 if way.dtype == "bfloat16" else None
    step = TrainStep(network, autocast=autocast, compiled="compiled" in way.changes)
    size = spec.grid.image_size
    images = torch.randn(batch_size, 3, size, size, device=device)

    def turn():
        step(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    turn()
    return turn, {"torch": torch.__version__, "first_step_seconds": time.perf_counter() - begin}


def run(
    repeats: int = 15,
    *,
    variant: str = "tiny",
    batch_size: int = BATCH,
    image_size: int = 0,
    depth: int = 0,
    ways: tuple[str, ...] = WAYS,
    baseline: str = "",
) -> dict:
    """Times train steps in turns.

    Args:
        variant, image_size, depth: of `cases.model`.
        ways: names as `cases` explains them.
        baseline: the way that ratios are taken against; the first by default.
    """
    spec = model(variant, image_size, depth)
    makers = {"ours": ours, "peer": peer}
    contestants = {
        name: Contestant(
            makers[way.who], (spec, batch_size, way), way.environment | _ON_A_GPU_FOR_SEVERAL
        )
        for name, way in ((name, Way(name)) for name in ways)
    }
    baseline = baseline or ways[0]
    found = race(contestants, baseline, repeats)
    peak, product = peak_flops(), matmul_flops_per_second()
    for name, row in found.items():
        # Counted without the last block for all: keeping it does nothing useful.
        rate = batch_size * train_flops(spec) / row["seconds"]
        row["images_per_s"] = batch_size / row["seconds"]
        row["useful_gflop_per_s"] = rate / 1e9
        row["share_of_product_rate"] = rate / product
        row["mfu"] = rate / peak if peak and Way(name).dtype == "bfloat16" else None
    grid = spec.grid
    return {
        "case": f"train step, {variant}, depth {spec.encoder.depth}, {grid.image_size} px, patch "
        f"{grid.patch_size}, k {grid.block_size}, batch {batch_size}",
        "baseline": baseline,
        "product_gflop_per_s": product / 1e9,
        "ways": found,
        "spec": dataclasses.asdict(spec),
    }


# One process must not take all of a GPU's memory before the next has any.
_ON_A_GPU_FOR_SEVERAL = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
