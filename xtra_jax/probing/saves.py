"""Where a probe is saved while it is trained, and what it must share with what it goes on from.

The folder of a probe:

    checkpoints/<step>/    while it is trained: the heads, and what was found out so far
    features/              what is computed once, see `xtra_jax.probing.cache`
    results.json, ...      when it is complete, see `xtra_jax.probing.results`
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import config_diff, from_dict
from xtra_jax.errors import UserError
from xtra_jax.probing.results import RESULTS, Results, read_results
from xtra_jax.probing.sweep import ProbeState
from xtra_jax.probing.tally import Tally
from xtra_jax.training.agreement import from_the_first
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory, read_config
from xtra_jax.training.restore import complete_steps, find_checkpoint, read_json
from xtra_jax.training.storage import absolute

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

    To be called by all processes of a run, which agree on it. A checkpoint left behind by one that
    was interrupted after its results were written, is removed.

    Raises:
        UserError: it is complete and another one; or the folder is that of a pretraining run.
    """
    folder = absolute(folder)
    checkpoints = checkpoint_directory(folder)
    steps = complete_steps(checkpoints) if checkpoints.is_dir() else []
    if steps and "probe" not in read_config(checkpoints):
        raise UserError(
            f"{folder} is the working directory of a pretraining run: give another --out to a probe"
        )
    if not from_the_first(int((folder / RESULTS).exists())):
        return None
    results = read_results(folder)
    refuse_others(
        folder,
        config=(results.provenance.config, config),
        encoder=(results.provenance.checkpoint_hash, encoder),
    )
    if steps:
        remove_checkpoints(checkpoints)
    return results


def remove_checkpoints(directory: epath.Path) -> None:
    """Removes what a complete probe no longer needs; called by all processes of a run."""
    from_the_first(0)  # waits until all are through with it
    if jax.process_index() == 0:
        directory.rmtree()
