"""What each step of a run trains on, and the state it starts and ends with, noted from inside.

    python -m tests.seen FOLDER pretrain ...

runs `xtra pretrain ...` and has every process write into FOLDER what its own devices hold, so
that a test can put the parts of all processes together. `XTRA_STOP=STEP:SIGNAL` in the environment
has the process send itself a signal before that step.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from xtra_jax.training import pretrain as job
from xtra_jax.training.restore import by_name


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Notes what the runs of this process see."""
    train = job.train
    folder.mkdir(parents=True, exist_ok=True)
    process = f"{os.getpid()}"

    def recorded(state, batches, *args, first_step, **settings):
        _note_state(state, folder / f"first-{first_step}-{process}.npz")
        noted = _noted(batches, first_step, folder / f"rows-{process}.jsonl")
        state, step = train(state, noted, *args, first_step=first_step, **settings)
        _note_state(state, folder / f"last-{step}-{process}.npz")
        return state, step

    job.train = recorded
    try:
        yield
    finally:
        job.train = train


def rows_seen(folder: Path) -> dict[int, list[int]]:
    """For each step the fingerprints of the images it saw, in the order of the global batch.

    A step that was taken again after a restart has to have seen the same.
    """
    steps: dict[int, dict[int, int]] = {}
    for file in folder.glob("rows-*.jsonl"):
        for line in file.read_text().splitlines():
            step, rows = json.loads(line)
            seen = steps.setdefault(step, {})
            for row, fingerprint in rows:
                assert seen.setdefault(row, fingerprint) == fingerprint, f"step {step}, row {row}"
    return {step: [seen[row] for row in range(len(seen))] for step, seen in steps.items()}


def state_seen(folder: Path, when: str) -> dict[tuple[str, ...], np.ndarray]:
    """The whole state at "first-STEP" or "last-STEP", from the parts of all processes."""
    whole, filled = {}, {}
    for file in folder.glob(f"{when}-*.npz"):
        with np.load(file) as parts:
            for key, part in parts.items():
                name, shape, index = json.loads(key)
                array = whole.setdefault(tuple(name), np.empty(shape, part.dtype))
                mask = filled.setdefault(tuple(name), np.zeros(shape, bool))
                where = tuple(slice(start, stop) for start, stop in index)
                array[where], mask[where] = part, True
    assert whole and all(mask.all() for mask in filled.values())
    return whole


def _noted(batches: Iterator[dict], step: int, file: Path) -> Iterator[dict]:
    stop, _, number = os.environ.get("XTRA_STOP", "-1:0").partition(":")
    with open(file, "a") as lines:
        for batch in batches:
            if step == int(stop):
                os.kill(os.getpid(), int(number))
            print(json.dumps([step, _fingerprints(batch["image"])]), file=lines, flush=True)
            yield batch
            step += 1


def _fingerprints(images: jax.Array) -> list[tuple[int, int]]:
    """Row in the global batch and fingerprint of each image on this process's devices."""
    rows = {}
    for shard in images.addressable_shards:
        first = shard.index[0].start or 0
        for row, image in enumerate(np.asarray(shard.data), first):
            rows[row] = zlib.crc32(image.tobytes())
    return sorted(rows.items())


def _note_state(state, file: Path) -> None:
    parts = {}
    for name, leaf in by_name(state).items():
        for shard in leaf.addressable_shards:
            index = [s.indices(size)[:2] for s, size in zip(shard.index, leaf.shape, strict=True)]
            parts[json.dumps([name, leaf.shape, index])] = np.asarray(shard.data)
    np.savez(file, **parts)


if __name__ == "__main__":
    from xtra_jax.cli import main

    with recording(Path(sys.argv[1])):
        sys.exit(main(sys.argv[2:]))
