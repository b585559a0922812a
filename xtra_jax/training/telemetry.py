"""What a run measures, written down twice: as JSON lines, and as TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import SupportsFloat

from etils import epath

from xtra_jax.training.quiet import without_module
from xtra_jax.training.storage import absolute, explained, is_local, write_text

with without_module("torch"):  # which tensorboardX would load wherever it is installed
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import directory_check

_FLUSH_SECONDS = 20.0  # for event files, and for everything remote: a flush uploads whole files


class MetricWriter:
    """Writes <workdir>/metrics.jsonl and <workdir>/tensorboard.

    Each line of metrics.jsonl is an object with `step`, `time` (seconds since 1970) and the
    metrics by name. JSON has no NaN and no infinities: they are the strings "NaN", "Infinity"
    and "-Infinity", which `float` in Python and `Number` in JavaScript turn into what they
    mean. `read_metrics` reads the file back.

    A run that goes on from a checkpoint repeats the steps after it. What an earlier process
    wrote about those steps is dropped from metrics.jsonl and hidden in TensorBoard, so that
    both tell each step once.

    Args:
        workdir: the run's working directory, created if missing; local or remote.
        step: the one the run starts from: 0, or that of the checkpoint.
        active: whether to write at all. Of several processes, only the first should.

    Raises:
        UserError: the files cannot be written (so does `write`).
    """

    def __init__(self, workdir: os.PathLike | str, *, step: int = 0, active: bool = True):
        self._active = active
        if not active:
            return
        workdir = absolute(workdir)
        self._doing = f"cannot write metrics to {workdir}"
        self._path = workdir / "metrics.jsonl"
        with explained(self._doing):
            workdir.mkdir(parents=True, exist_ok=True)
            lines = _lines_until(self._path, step)
            if is_local(self._path):
                self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
            else:
                self._file, self._lines = None, lines  # what can't be appended to is rewritten
            self._events = _open_events(workdir / "tensorboard", step)
        self._flushed = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Writes scalars measured at a step."""
        if not self._active:
            return
        now = time.time()
        values = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "time": round(now, 3)}
        record |= {name: _as_json(value) for name, value in values.items()}
        line = json.dumps(record, allow_nan=False) + "\n"
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(wall_time=now, step=step, summary=Summary(value=scalars))
        try:
            with explained(self._doing):
                if self._file is not None:
                    self._file.write(line)
                    self._file.flush()
                else:
                    self._lines.append(line)
                self._events.write_event(event)
                if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                    self._flush()
        except Exception:
            self._abandon()
            raise

    def flush(self) -> None:
        """Puts what was written so far where a reader finds it, and a crash leaves it."""
        if not self._active:
            return
        try:
            with explained(self._doing):
                self._flush()
        except Exception:
            self._abandon()
            raise

    def close(self) -> None:
        """Writes what is still buffered. Nothing can be written afterwards."""
        if not self._active:
            return
        try:
            with explained(self._doing):
                self._flush()
        finally:
            self._abandon()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _flush(self) -> None:
        self._events.flush()
        if self._file is None:
            write_text(self._path, "".join(self._lines))
        self._flushed = time.monotonic()

    def _abandon(self) -> None:
        """Closes the files without another word about what cannot be written."""
        self._active = False
        for file in (self._events, self._file):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


def read_metrics(workdir: os.PathLike | str) -> list[dict[str, float]]:
    """The lines of <workdir>/metrics.jsonl with all metrics as floats; `step` is an int."""
    path = absolute(workdir) / "metrics.jsonl"
    with explained(f"cannot read {path}"):
        lines = path.read_text().splitlines(keepends=True)
    return [
        {name: value if name == "step" else float(value) for name, value in record.items()}
        for record in map(_parse, lines)
        if record is not None
    ]


def _as_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _parse(line: str) -> dict | None:
    """A line's record; None for one torn off by the end of the process that wrote it."""
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None


def _lines_until(path: epath.Path, step: int) -> list[str]:
    """The lines of a file about steps up to `step`; others are removed from the file."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    parsed = map(_parse, lines)
    kept = [
        line
        for line, record in zip(lines, parsed, strict=True)
        if record is not None and record["step"] <= step
    ]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))
    return kept


def _open_events(directory: epath.Path, step: int) -> EventsWriter:
    """A new event file, before which TensorBoard hides what others hold beyond `step`.

    tensorboardX's own SummaryWriter passes events through a bounded queue to a thread that
    does not survive a full disk; after ten more events the training would wait for ever.
    """
    path = os.fspath(directory)
    directory_check(path)
    # File names have a resolution of one second, and a file of the same name is overwritten.
    events = EventsWriter(os.path.join(path, "events"), filename_suffix=f".{time.time_ns()}")
    start = SessionLog(status=SessionLog.START)
    events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
    events.flush()
    return events
