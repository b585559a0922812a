"""Seconds to save and restore a training state, beside writing and reading as many plain bytes."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.cases import model
from xtra_jax.training.checkpoint import Checkpointer
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import init_state


def run(repeats: int, *, variant: str = "tiny") -> dict:
    """Times, in turns: how long a save holds up the run, until it is complete, and a restore.

    The baseline is one file of NumPy's with the same numbers, written and read back.
    """
    optimizer = adamw(
        lambda step: 1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
    )
    spec = model(variant)
    state = jax.jit(lambda: init_state(spec, optimizer, jax.random.key(0)))()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    turns: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(f"{folder}/checkpoints", save_every=1, keep=1) as checkpointer,
    ):
        plain = Path(folder, "plain.npz")
        for step in range(1, repeats + 1):
            begin = time.perf_counter()
            np.savez(plain, *leaves)
            written = time.perf_counter()
            with np.load(plain) as file:
                for name in file:
                    file[name]
            read = time.perf_counter()
            checkpointer.save(step, state, position={}, config={})
            returned = time.perf_counter()
            checkpointer.wait()
            saved = time.perf_counter()
            jax.block_until_ready(checkpointer.restore(target)[0])
            restored = time.perf_counter()
            turns.append(
                {
                    "plain_save": written - begin,
                    "plain_restore": read - written,
                    "save_holds_up": returned - read,
                    "save": saved - read,
                    "restore": restored - saved,
                }
            )
    return {
        "case": f"save and restore a training state, {variant}",
        "gib": sum(leaf.nbytes for leaf in leaves) / 2**30,
        "baseline": "one NumPy file",
        "seconds": {name: statistics.median(t[name] for t in turns) for name in turns[0]},
        "seconds_all": turns,
        "save_over_plain": statistics.median(t["save"] / t["plain_save"] for t in turns),
        "restore_over_plain": statistics.median(t["restore"] / t["plain_restore"] for t in turns),
    }
