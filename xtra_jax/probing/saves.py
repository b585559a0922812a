"""Where a probe is saved while it is trained, and what it must share with what it goes on from.

The folder of a probe:

    checkpoints/<step>/    while it is trained: the heads, and what was found out so far
    features/              what is computed once, of an encoder that belongs to no run; see
                           `xtra_jax.probing.cache`
    lock                   kept by the command that trains it
    results.json, ...      when it is complete, see `xtra_jax.probing.results`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import config_diff, from_dict
from xtra_jax.data.prepare.files import locked
from xtra_jax.errors import UserError
from xtra_jax.parallel.consensus import from_the_first
from xtra_jax.probing.results import RESULTS, Results, read_results
from xtra_jax.probing.sweep import ProbeState
from xtra_jax.probing.tally import Tally
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory, read_config
from xtra_jax.training.restore import complete_steps, find_checkpoint, read_json
from xtra_jax.training.storage import absolute, explained, is_local

_LOCK, _REMOVED = "lock", "-removed"

# Where and how the numbers are computed, and where the images lie: these may change midway.
_FREE = (
    "name",
    "checkpoint",
    "datasets",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "probe.heads_at_once",
    "data.data_dir",
    "data.num_workers",
    "data.prefetch",
    "data.bad_fraction",
    "cache.",
    "mesh.",
)


class Saves:
    """Saves a probe and brings it back.

    Args:
        checkpointer: over the checkpoints of the probe's folder.
        config: of the probe.
        encoder: SHA-256 of the encoder's weights.
        records: name to a digest of the examples, in their order.

    Raises:
        UserError: the folder holds a probe of another config, encoder or data set.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        config: ConfigDict,
        *,
        encoder: str,
        records: Mapping[str, str],
    ):
        self._checkpointer = checkpointer
        self._config = config
        self._position = {"encoder": encoder, "records": dict(records)}
        self._seconds, self._since = 0.0, time.monotonic()
        self.first_step = checkpointer.latest_step() or 0
        if self.first_step:
            self._check()

    @property
    def seconds(self) -> float:
        """How long the probe has taken, earlier runs of it included as far as they were saved."""
        return self._seconds + time.monotonic() - self._since

    def restore(self, shapes: ProbeState, shardings: Any = None) -> tuple[ProbeState, dict] | None:
        """The newest state and the tally saved with it; None if there is none.

        Args:
            shapes: of the state, as from `jax.eval_shape`.
            shardings: a tree like it; None for the first device.
        """
        if not self.first_step:
            return None
        if shardings is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda leaf: device, shapes)
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        state, position, _ = self._checkpointer.restore(targets)
        self._seconds, self._since = position["seconds"], time.monotonic()
        return state, position["tally"]

    def due(self, step: int) -> bool:
        return self._checkpointer.due(step)

    def save(self, step: int, state: ProbeState, tally: Tally) -> None:
        position = self._position | {
            "next_sample": step * self._config.batch_size,
            "seconds": self.seconds,
            "tally": tally.to_json(),
        }
        self._checkpointer.save(
            step, state, position=position, config=self._config.to_dict(), force=True
        )

    def _check(self) -> None:
        directory = self._checkpointer.directory
        folder = directory.parent
        position = read_json(find_checkpoint(directory), "position")
        refuse_others(
            folder,
            config=(self._checkpointer.read_config(), self._config),
            encoder=(position["encoder"], self._position["encoder"]),
        )
        for name, digest in self._position["records"].items():
            if position["records"][name] != digest:
                raise UserError(
                    f"the {name} images of {self._config.data.dataset} that the probe in {folder} "
                    "began with, or their order, are no longer the same: restore the data set, or "
                    "give another --out"
                )


def refuse_others(
    folder: os.PathLike | str, *, config: tuple[dict, ConfigDict], encoder: tuple[str, str]
) -> None:
    """UserError where a folder's probe is not the one that is asked for.

    Args:
        config, encoder: those of the probe in the folder, and those that are asked for.
    """
    if encoder[0] != encoder[1]:
        raise UserError(
            f"{folder} holds a probe of another encoder (SHA-256 {encoder[0][:12]}... and not "
            f"{encoder[1][:12]}...): give another --out, or the --checkpoint that it began with"
        )
    free_folder = config[1].data.dataset != "folder"
    for key, (theirs, ours) in config_diff(from_dict(config[0]), config[1]).items():
        if key.startswith(_FREE) and (key != "data.data_dir" or free_folder):
            continue
        raise UserError(
            f"{folder} holds a probe with {key}={theirs}, and the config now says {ours}: give "
            "another --out, or the config that it began with"
        )


def find_complete(folder: os.PathLike | str, config: ConfigDict, encoder: str) -> Results | None:
    """What a folder holds, if that is the probe asked for and complete.

    To be called by all processes of a run, which agree on it. It only reads.

    Raises:
        UserError: it is complete and another one; or the folder is that of a pretraining run.
    """
    folder = absolute(folder)
    # Results first: beside them, checkpoints may be there in part, as their removal was cut off.
    if from_the_first(int((folder / RESULTS).exists())):
        results = read_results(folder)
        refuse_others(
            folder,
            config=(results.provenance.config, config),
            encoder=(results.provenance.checkpoint_hash, encoder),
        )
        return results
    checkpoints = checkpoint_directory(folder)
    if complete_steps(checkpoints) and "probe" not in read_config(checkpoints):
        raise UserError(
            f"{folder} is the working directory of a pretraining run: give another --out to a probe"
        )
    return None


@contextlib.contextmanager
def alone_in(folder: epath.Path) -> Iterator[None]:
    """Keeps a second command out of a probe's folder, which is made; ends with the process.

    To be called by all processes of a run; the first one holds the folder for all. On object stores
    nothing is kept out.

    Raises:
        UserError: another command is at work there, or it cannot be written; in every process.
    """
    refusal = UserError(f"another command is already probing in {folder}: let it finish")
    with contextlib.ExitStack() as stack:
        refused = False
        if jax.process_index() == 0:
            try:
                with explained(f"cannot write to {folder}"):
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(folder / _LOCK, str(refusal)))
            except UserError as error:
                refused, refusal = True, error
        if from_the_first(int(refused)):
            raise refusal
        yield


def clean_up(folder: epath.Path) -> None:
    """Removes what a complete probe no longer needs; called by all processes of a run.

    Checkpoints that no probe is known to have written are left where they are.

    Raises:
        UserError: the file system refuses it.
    """
    from_the_first(0)  # waits until all are through with it
    if jax.process_index():
        return
    checkpoints = checkpoint_directory(folder)
    removed = checkpoints.with_name(checkpoints.name + _REMOVED)
    what = f"cannot remove the checkpoints of the complete probe in {folder}"
    # What another command removes at the same time, is removed.
    with explained(what), contextlib.suppress(FileNotFoundError):
        removed.rmtree(missing_ok=True)  # by one that was cut off
        if _of_a_probe(checkpoints):
            if is_local(checkpoints):  # so that no part of it is ever found in its place
                checkpoints = checkpoints.rename(removed)
            checkpoints.rmtree(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)


def _of_a_probe(checkpoints: epath.Path) -> bool:
    try:
        return bool(complete_steps(checkpoints)) and "probe" in read_config(checkpoints)
    except UserError:
        return False
