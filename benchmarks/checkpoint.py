"""Seconds to save and restore a training state, beside writing and reading as many plain bytes.

Images/s and MFU do not apply, for nothing is computed. The baseline is one file of NumPy's with the
same numbers, written and read back; peak memory is that of the process, the state included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.cases import model
from benchmarks.device import here
from benchmarks.memory import forget_the_host_peak, host_peak_mib
from xtra_jax.training.checkpoint import Checkpointer
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import init_state

BASELINE, OURS = "one NumPy file", "ours"


def run(repeats: int, *, variant: str = "tiny") -> dict:
    """Times, in turns: how long a save holds up the run, until it is complete, and a restore."""
    here()
    optimizer = adamw(
        lambda step: 1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
    )
    spec = model(variant)
    state = jax.jit(lambda: init_state(spec, optimizer, jax.random.key(0)))()
    on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_one), state
    )
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    turns: dict[str, list[dict]] = {BASELINE: [], OURS: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(f"{folder}/checkpoints", save_every=1, keep=1) as checkpointer,
    ):
        plain = Path(folder, "plain.npz")
        for step in range(1, repeats + 1):
            turns[BASELINE].append(_measured(_plain, plain, leaves))
            turns[OURS].append(_measured(_ours, checkpointer, step, state, target))
    return {
        "case": f"save and restore a training state, {variant}",
        "gib": sum(leaf.nbytes for leaf in leaves) / 2**30,
        "baseline": BASELINE,
        "ways": {name: _summary(mine, turns[BASELINE]) for name, mine in turns.items()},
    }


def _plain(path: Path, leaves: list[np.ndarray]) -> dict[str, float]:
    begin = time.perf_counter()
    np.savez(path, *leaves)
    saved = time.perf_counter()
    with np.load(path) as file:
        for name in file:
            file[name]
    return {"save_seconds": saved - begin, "restore_seconds": time.perf_counter() - saved}


def _ours(checkpointer: Checkpointer, step: int, state, target) -> dict[str, float]:
    begin = time.perf_counter()
    checkpointer.save(step, state, position={}, config={})
    returned = time.perf_counter()
    checkpointer.wait()
    saved = time.perf_counter()
    jax.block_until_ready(checkpointer.restore(target)[0])
    return {
        "held_up_seconds": returned - begin,
        "save_seconds": saved - begin,
        "restore_seconds": time.perf_counter() - saved,
    }


def _measured(turn: Callable[..., dict[str, float]], *arguments) -> dict[str, float]:
    forget_the_host_peak()
    return turn(*arguments) | {"host_peak_mib": host_peak_mib()}


def _summary(turns: list[dict], base: list[dict]) -> dict:
    found: dict = {name: statistics.median(t[name] for t in turns) for name in turns[0]}
    for what in ("save", "restore"):
        seconds = f"{what}_seconds"
        ratios = [b[seconds] / a[seconds] for a, b in zip(turns, base, strict=True)]
        found[f"{what}_speed_over_{BASELINE}"] = statistics.median(ratios)
    return found | {"turns_all": turns}
