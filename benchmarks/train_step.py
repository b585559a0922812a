"""The train step in turns: ours, ours otherwise, and what a user would run in PyTorch instead.

The default case is ViT-Ti/16 at 128 px, k = 2, batch 16, projection 1024 -> 192, predictor depth 8
with 3 heads, head hidden 1536, float32: small enough for two CPU cores. MFU is printed where the
peak rate of the device is known, which no CPU's is; beside it stands the share of the rate of one
large matrix product, measured in the same run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.cases import Way, check_ways, have_torch, how_to_install_torch, model
from benchmarks.device import here, product_rates
from benchmarks.memory import jax_peak_mib, torch_peak_mib
from benchmarks.turns import Contestant, Turn, race
from xtra_jax.model.flops import train_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, init_state, make_train_step

BATCH = 16
WAYS = ("ours", "ours,all_blocks")


def default_ways() -> tuple[str, ...]:
    """PyTorch's step is the baseline where it is installed."""
    return ("peer", *WAYS) if have_torch() else WAYS


def lowered_step(
    spec: XTRASpec, batch_size: int, way: Way
) -> tuple[jax.stages.Lowered, Callable, dict]:
    """The step of a way of ours, lowered, what makes a state to donate to it, a batch of noise."""
    spec = dataclasses.replace(spec, dtype=way.dtype, predictor_dtype=way.dtype)
    objective, execution = Objective(drop_last_block=way.drop_last_block), way.execution()
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


def ours(spec: XTRASpec, batch_size: int, way: Way) -> tuple[Turn, dict]:
    """A turn is one step, whose state goes into the next one."""
    begin = time.perf_counter()
    lowered, make_state, batch = lowered_step(spec, batch_size, way)
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
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default
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
    ways: tuple[str, ...] = (),
    baseline: str = "",
) -> dict:
    """Times train steps in turns.

    Args:
        variant, image_size, depth: of `cases.model`.
        ways: names as `cases` explains them; by default `default_ways`.
        baseline: the way that ratios are taken against; the first by default.

    Raises:
        UserError: a way, the baseline or the image size does not exist, or cannot be timed here.
        RunFailed: a way's process died.
    """
    spec = model(variant, image_size, depth)
    names = ways or default_ways()
    check_ways(names, baseline)
    ways_by_name = {name: Way(name) for name in names}
    device = here()
    for way in ways_by_name.values():
        way.check_on(device)
    contestants = {name: contestant(spec, batch_size, way) for name, way in ways_by_name.items()}
    baseline = baseline or names[0]
    found = race(contestants, baseline, repeats, in_turns=device.in_turns)
    products = product_rates(sorted({way.dtype for way in ways_by_name.values()}))
    for name, row in found.items():
        dtype = ways_by_name[name].dtype
        # Counted without the last block for all: keeping it does nothing useful.
        rate = batch_size * train_flops(spec) / row["seconds"]
        peak = device.peak_flops(dtype)
        row["images_per_s"] = batch_size / row["seconds"]
        row["useful_gflop_per_s"] = rate / 1e9
        row["share_of_product_rate"] = rate / products[dtype]
        row["mfu"] = rate / peak if peak else None
    grid = spec.grid
    notes = {}
    if not (ways or have_torch()):
        notes["not timed"] = f"PyTorch's step, for it is missing: {how_to_install_torch()}"
    return {
        "case": f"train step, {variant}, depth {spec.encoder.depth}, {grid.image_size} px, patch "
        f"{grid.patch_size}, k {grid.block_size}, batch {batch_size}",
        **notes,
        "order": device.order,
        "baseline": baseline,
        "product_gflop_per_s": {dtype: rate / 1e9 for dtype, rate in products.items()},
        "ways": found,
        "spec": dataclasses.asdict(spec),
    }


def contestant(spec: XTRASpec, batch_size: int, way: Way) -> Contestant:
    make, device_peak = (ours, jax_peak_mib) if way.who == "ours" else (peer, torch_peak_mib)
    return Contestant(make, (spec, batch_size, way), way.environment, device_peak)
