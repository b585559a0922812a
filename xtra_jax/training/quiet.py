"""Keeps other libraries from saying what nobody can act on, and from loading what nobody needs.

Orbax tells its progress in several lines per save. When a write fails, the failure reaches us as
one exception, and `xtra_jax.training.checkpoint` tells it in one sentence; but every thread and
every array still in flight reports it too, in hundreds of tracebacks, through four channels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from xtra_jax.training.storage import tensorstore_reason


def silence_checkpoint_libraries() -> None:
    """Installs the filters below, for the whole process; once is enough."""
    logging.getLogger("absl").addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_a_failed_write)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback for every attempt
    warnings.filterwarnings(
        "ignore", r"coroutine '.*write_fragment' was never awaited", RuntimeWarning
    )
    report = sys.unraisablehook

    def report_others(unraisable) -> None:
        # Writes that end after another has failed find Orbax's event loop gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_others


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace(os.sep, "/")


def _not_a_failed_write(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or tensorstore_reason(str(error)) is None


@contextlib.contextmanager
def without_module(name: str) -> Iterator[None]:
    """What is imported meanwhile finds no such module, unless it is in memory already."""
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]
