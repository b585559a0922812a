"""Whether all processes of a run were told the same, and see the same working directory.

Otherwise they would compute different programs, or wait for files that others write elsewhere: both
end in waiting for ever.
"""

from __future__ import annotations

import json
import time

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from xtra_jax.config import config_diff, from_dict
from xtra_jax.errors import UserError
from xtra_jax.parallel.consensus import from_the_first, text_from_the_first
from xtra_jax.training.storage import explained

_SECONDS = 30.0  # in which network file systems show what another host has written
_WORKDIR = "a --workdir that all hosts share, on a network file system or gs://"


def check_same_run_everywhere(config: ConfigDict, examples: int, records: str) -> None:
    """To be called by all processes of a run at its start.

    Args:
        examples: that this process's copy of the training set has.
        records: a digest of which images they are, and of others that all processes need alike.

    Raises:
        UserError: in the process that differs from process 0, naming what differs.
    """
    if jax.process_count() == 1:
        return
    theirs = json.loads(text_from_the_first(json.dumps([config.to_dict(), examples, records])))
    for key, (first, ours) in config_diff(from_dict(theirs[0]), config).items():
        raise UserError(
            f"process {jax.process_index()} was started with {key}={ours}, and process 0 with "
            f"{first}: start all processes with the same command"
        )
    if examples != theirs[1]:
        raise UserError(
            f"process {jax.process_index()} finds {examples} training images, and process 0 "
            f"{theirs[1]}: give all hosts the same copy of {config.data.dataset}"
        )
    if records != theirs[2]:
        raise UserError(
            f"process {jax.process_index()} finds other images than process 0, or in another "
            f"order: give all hosts the same copy of {config.data.dataset}"
        )


def check_shared(directory: epath.Path, wanted: str = _WORKDIR) -> None:
    """Finds out before the first save what would otherwise leave all processes waiting in it.

    To be called by all processes.

    Args:
        wanted: the end of the sentence, after "give".

    Raises:
        UserError: not all see what the first one writes; every process raises it.
    """
    if jax.process_count() == 1:
        return
    number = from_the_first(time.time_ns() % 2**31)
    sign = directory / f".shared-{number}"
    with explained(f"cannot write to {directory}"):
        if jax.process_index() == 0:
            sign.write_text("")
        multihost_utils.sync_global_devices("a sign is written")
        seen = multihost_utils.process_allgather(np.int32(appears(sign)))
        if jax.process_index() == 0:
            sign.unlink()
    if not seen.all():
        raise UserError(
            f"process {int(np.argmin(seen))} of {len(seen)} does not see what process 0 writes to "
            f"{directory}: give {wanted}"
        )


def appears(path: epath.Path) -> bool:
    end = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
