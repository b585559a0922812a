"""How far a run is: one live line on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_WINDOW = 20  # updates over which the time per step is averaged


class Progress:
    """Prints the step, loss, images per second, time left and where the time goes.

    On a terminal every update replaces the line before it, and fields that do not fit the
    width are left out, the last ones first. Elsewhere every update is a line.

    Args:
        total_steps: of the run.
        stream: where to print; standard error by default.
        active: whether to print at all. Of several processes, only the first should.
        clock: seconds, from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        *,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._active = active
        self._clock = clock
        self._live = self._stream.isatty()
        self._shown = 0
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW + 1)

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        images_per_s: float | None = None,
        compute: float | None = None,
        input_wait: float | None = None,
        host: float | None = None,
    ) -> None:
        """Shows where the run is.

        The time left is told from the second update on, from the time that passed between
        updates: whatever went before the first, compilation above all, does not count.

        Args:
            step: number of steps taken.
            loss: the training loss.
            images_per_s: over all devices.
            compute, input_wait, host: shares of the time, in [0, 1], that the host spent waiting
                for the devices, waiting for input, and on its own work.
        """
        self._seen.append((self._clock(), step))
        fields = [f"step {step}/{self._total}"]
        if loss is not None:
            fields.append(f"loss {loss:.4f}")
        if images_per_s is not None:
            fields.append(f"{images_per_s:,.{0 if images_per_s >= 100 else 1}f} images/s")
        fields.append(f"{self._time_left()} left")
        shares = {"compute": compute, "input wait": input_wait, "host": host}
        fields += [f"{name} {share:.0%}" for name, share in shares.items() if share is not None]
        if not self._live:
            self._print("  ".join(fields) + "\n")
            return
        # A full line would make some terminals wrap: keep its last column free.
        width = max(shutil.get_terminal_size().columns - 1, 1)
        while len(fields) > 1 and len("  ".join(fields)) > width:
            fields.pop()
        line = "  ".join(fields)[:width]
        self._print("\r" + line.ljust(min(self._shown, width)))
        self._shown = len(line)

    def note(self, message: str) -> None:
        """Prints a line of its own, above the live line."""
        self._print(("\r" + message.ljust(self._shown) if self._shown else message) + "\n")
        self._shown = 0

    def close(self) -> None:
        """Ends the live line, so that what is printed next starts on a new one."""
        if self._shown:
            self._print("\n")
            self._shown = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _time_left(self) -> str:
        (start, first), (now, last) = self._seen[0], self._seen[-1]
        if last <= first:
            return "-:--:--"
        seconds = round((self._total - last) * (now - start) / (last - first))
        minutes, seconds = divmod(max(seconds, 0), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"

    def _print(self, text: str) -> None:
        # A log that cannot be written, on a full disk or in a closed pipe, ends no training.
        if self._active:
            with contextlib.suppress(OSError):
                self._stream.write(text)
                self._stream.flush()
