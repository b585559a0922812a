"""One answer on all processes of a run: what the first one says, or what holds on all of them.

All functions are to be called by all processes, in the same order.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_all(holds: bool) -> bool:
    """Whether it holds on all processes."""
    if jax.process_count() == 1:
        return holds
    return bool(multihost_utils.process_allgather(np.int32(holds)).all())


def from_the_first(number: int) -> int:
    """What the first process calls this with, on all of them; below 2^31 in size."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def text_from_the_first(text: str) -> str:
    """What the first process calls this with, on all of them."""
    data = np.frombuffer(text.encode(), np.uint8)
    sent = np.zeros(from_the_first(len(data)), np.uint8)
    sent[: len(data)] = data[: len(sent)]
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return received.astype(np.uint8).tobytes().decode()
