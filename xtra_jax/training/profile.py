"""A profile of a few steps: where the time goes on the host and on the devices, for xprof."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath

from xtra_jax.training.storage import absolute, is_local

STEPS = 3  # enough to see a whole one between two others


class StepProfile:
    """Traces `STEPS` steps of a run into <workdir>/profile, each under its number.

    Whatever goes wrong with it is told and ends no run.

    Args:
        workdir: the run's working directory, local or remote.
        first: the step to begin with, as the log counts them; 0 for no profile.
        note: is told where the profile is, or why there is none; by the first step at the latest
            where the run began after the steps asked for.
        active: whether to trace. Of several processes, only the first should.
    """

    def __init__(
        self,
        workdir: str = "",
        first: int = 0,
        note: Callable[[str], None] = print,
        *,
        active: bool = True,
    ):
        self._first = first if active else 0
        self._directory = absolute(workdir) / "profile" if self._first else None
        self._note = note
        self._begun = False
        self._local: str | None = None  # where the trace under way is written

    def begins_with(self, step: int) -> bool:
        """Whether this step is the first to trace; when those before are done, `start` it.

        A run that goes on from a later step than the first is told that there is no profile.
        """
        if self._first and step > self._first and not self._begun:
            self._note(
                f"no profile: profile_at={self._first}, and the run goes on with step {step}"
            )
            self._first = 0
        return step == self._first and not self._begun

    def start(self) -> None:
        """Begins to trace."""
        self._begun = True
        try:
            if is_local(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
                local = str(self._directory)
            else:
                local = tempfile.mkdtemp(prefix="xtra-profile-")
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be slower, and drown the rest
            jax.profiler.start_trace(local, profiler_options=options)
            self._local = local
        except Exception as error:  # the profiler raises nearly anything
            self._note(f"no profile: {_reason(error)}")

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """What a step is dispatched under; outside of the profile, nothing."""
        if self._local is None:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def ends_with(self, step: int) -> bool:
        """Whether this step is the last to trace; when its results are there, `close` it."""
        return self._local is not None and step >= self._first + STEPS - 1

    def close(self, step: int | None = None) -> None:
        """Writes the trace under way, if any, whose last step is the one given."""
        if self._local is None:
            return
        local, self._local = self._local, None
        try:
            jax.profiler.stop_trace()
            if not is_local(self._directory):
                _upload(Path(local), self._directory)
            until = f" to {step}" if step is not None else " on"
            self._note(
                f"profile of the steps {self._first}{until}: {self._directory}; look at it with "
                f"xprof --logdir={self._directory}"
            )
        except Exception as error:
            self._note(f"no profile: {_reason(error)}")
        finally:
            if not is_local(self._directory):
                shutil.rmtree(local, ignore_errors=True)

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _upload(local: Path, directory: epath.Path) -> None:
    for path in local.rglob("*"):
        if path.is_file():
            target = directory / path.relative_to(local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
