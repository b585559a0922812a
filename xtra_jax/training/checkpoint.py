"""Checkpoints: saved in the background, found only when complete, the newest kept.

The working directory of a run:

    <workdir>/config.json               its config, for people
    <workdir>/checkpoints/<step>/       see `xtra_jax.training.restore` for what is in one

A checkpoint is written under a temporary name and renamed when all of it is there (on gs://,
where directories cannot be renamed, a marker file is written last instead). A process killed at
any moment therefore leaves complete checkpoints, and temporary directories that the next run
removes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from importlib import metadata
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from xtra_jax.errors import UserError
from xtra_jax.parallel.consensus import from_the_first
from xtra_jax.training.agreement import check_shared
from xtra_jax.training.restore import (
    FORMAT,
    by_name,
    complete_steps,
    find_checkpoint,
    nested,
    read_config,
    read_json,
    read_state,
    restore_params,
)
from xtra_jax.training.storage import absolute, explained, write_text

__all__ = [
    "Checkpointer",
    "checkpoint_directory",
    "find_checkpoint",
    "read_config",
    "restore_params",
    "write_config",
]

log = logging.getLogger(__name__)

_TEMPORARY = ".orbax-checkpoint-tmp"  # how Orbax marks what is not complete, and cleans it up
_MARKER = "commit_success.txt"  # what makes a checkpoint complete on gs://
_CONTENTS = {"state", "position", "config", "metadata", "_CHECKPOINT_METADATA", _MARKER}


def checkpoint_directory(workdir: os.PathLike | str) -> epath.Path:
    """Where a run keeps its checkpoints."""
    return absolute(workdir) / "checkpoints"


def write_config(workdir: os.PathLike | str, config: dict) -> None:
    """Writes <workdir>/config.json, creating the directory if need be.

    Raises:
        UserError: it cannot be written.
    """
    path = absolute(workdir) / "config.json"
    with explained(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(config, indent=2) + "\n")


class Checkpointer:
    """Saves the checkpoints of a run and reads the one to go on from.

    Use it as a context manager: leaving it completes the save begun last. In a run of several
    processes, each makes one over the same directory and calls the same methods at the same
    steps.

    Args:
        directory: of the checkpoints (see `checkpoint_directory`), local or on gs://; created
            if missing.
        save_every: steps from one checkpoint to the next.
        keep: how many of the newest checkpoints to keep, at least 1.

    Raises:
        UserError: the directory cannot be created, holds something else, or is not the same one
            for all processes.
    """

    def __init__(self, directory: os.PathLike | str, *, save_every: int, keep: int):
        if save_every < 1 or keep < 1:
            raise ValueError(f"save_every={save_every} and keep={keep} must be at least 1")
        self.directory = absolute(directory)
        self._save_every = save_every
        self._keep = keep
        self._finisher: threading.Thread | None = None
        self._failure: Exception | None = None
        with explained(f"cannot keep checkpoints in {self.directory}"):
            self.directory.mkdir(parents=True, exist_ok=True)
            check_shared(self.directory)
            _refuse_other_contents(self.directory)
            self._manager = ocp.CheckpointManager(
                self.directory,
                # No max_to_keep: Orbax would delete file by file, in place (see _remove).
                options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
            )
            # Where another process still sees less, it goes by what the first one sees.
            newest = from_the_first(max(complete_steps(self.directory), default=-1))
        self._complete = self._begun = None if newest < 0 else newest

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return self._complete

    def due(self, step: int) -> bool:
        """Whether it is time to save: every `save_every` steps.

        What is saved already is not due. Cheap, so that it can be asked at every step; what
        should be looked at before a save need then be looked at only where there is one.

        Raises:
            UserError: the last save begun could not be written.
        """
        self._raise_failure()
        periodic = step > 0 and step % self._save_every == 0
        return periodic and step != self._begun

    def save(
        self, step: int, state: Any, *, position: dict, config: dict, force: bool = False
    ) -> bool:
        """Saves in the background if it is due; cheap otherwise, so call it at every step.

        The state may be donated as soon as this returns.

        Args:
            step: number of optimizer steps taken.
            state: pytree of arrays, its parameters at the key or field `params`.
            position: of the data stream; anything that JSON can hold.
            config: of the run; anything that JSON can hold.
            force: whether to save in any case, unless this step is saved already.

        Returns:
            Whether a save was begun. `wait` tells when it is complete.

        Raises:
            UserError: this save, or the one before, cannot be written. Complete checkpoints
                stay as they are.
        """
        if not (self.due(step) or force) or step == self._begun:
            return False
        if self._begun is not None and step < self._begun:
            raise ValueError(f"step {step} comes before step {self._begun}, which is saved")
        self.wait()
        libraries = {name: metadata.version(name) for name in ("jax", "orbax-checkpoint")}
        # Copied here, because the caller may change them while the save goes on.
        position, config = json.loads(json.dumps([position, config]))
        try:
            with self._explained(step):
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(nested(by_name(state))),
                        position=ocp.args.JsonSave(position),
                        config=ocp.args.JsonSave(config),
                        metadata=ocp.args.JsonSave(FORMAT | {"libraries": libraries}),
                    ),
                    force=True,
                )
        except Exception as error:
            self._failure = error
            raise
        self._begun = step
        self._finisher = threading.Thread(
            target=self._finish, args=(step,), name=f"finish checkpoint {step}"
        )
        self._finisher.start()
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict, dict]:
        """Reads a checkpoint, by default the newest, onto the shardings given.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` like the state saved; see
                `xtra_jax.training.restore.read_state`.
            step: which checkpoint.

        Returns:
            The state, and the data position and the config saved with it.

        Raises:
            UserError: there is no such checkpoint, or it holds another model.
        """
        self.wait()
        found = find_checkpoint(self.directory, self._complete if step is None else step)
        state = read_state(found, abstract_state)
        return state, read_json(found, "position"), read_json(found, "config")

    def read_config(self, step: int | None = None) -> dict:
        """The config saved with a checkpoint, by default the newest."""
        self.wait()
        return read_config(self.directory, self._complete if step is None else step)

    def wait(self) -> None:
        """Returns when the last save begun is complete.

        Raises:
            UserError: it cannot be written.
        """
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        self._raise_failure()

    def close(self) -> None:
        """Waits as `wait` does, and ends the background threads."""
        try:
            self.wait()
        except Exception:
            try:
                self._manager.close()
            except Exception as again:
                log.debug("closing after a failed save: %s", again)
            raise
        self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or jax.process_count() == 1:
            self.close()
            return
        # Closing waits for all processes, and if only this one fails they don't come. A save
        # that is going on in the background is theirs too, and does complete.
        with contextlib.suppress(Exception):
            self.wait()

    def _finish(self, step: int) -> None:
        """Waits, in a thread of its own, for a save to be complete; removes what is too old."""
        try:
            with self._explained(step):
                self._manager.wait_until_finished()
        except Exception as error:
            self._failure = error
            return
        self._complete = step
        if jax.process_index() == 0:
            for old in complete_steps(self.directory)[: -self._keep]:
                _remove(self.directory / str(old))

    def _explained(self, step: int):
        last = "there is none" if self._complete is None else f"step {self._complete}"
        return explained(
            f"cannot write the checkpoint of step {step} to {self.directory}",
            f"; the last complete checkpoint ({last}) is as it was",
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _remove(path: epath.Path) -> None:
    """Removes a checkpoint so that no half of one is ever found in its place."""
    try:
        if os.fspath(path).startswith("gs://"):
            (path / _MARKER).unlink(missing_ok=True)
        else:
            path = path.rename(path.with_name(path.name + _TEMPORARY))
        path.rmtree()
    except OSError as error:
        log.warning("cannot remove the old checkpoint %s: %s", path, error)


def _refuse_other_contents(directory: epath.Path) -> None:
    """UserError if a directory holds anything but checkpoints, complete or not.

    Old and incomplete checkpoints get deleted, and a number for a name does not make one: the
    folders of a data set's classes have numbers too.
    """
    if not directory.exists():  # on gs:// a directory begins to exist with the first file in it
        return
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        numbered = path.name.removesuffix(_TEMPORARY).isdigit() and path.is_dir()
        if not numbered or not _CONTENTS.issuperset(
            entry.name.removesuffix(_TEMPORARY) for entry in path.iterdir()
        ):
            raise UserError(
                f"{directory} is not a directory of checkpoints: {path.name} in it is none, so "
                "give another working directory"
            )
