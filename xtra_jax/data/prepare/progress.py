"""How far a preparation has come: a line that renews itself, or on no terminal a line a minute."""

from __future__ import annotations

import sys
import time

REFRESH = 0.5  # seconds between renewals on a terminal
INTERVAL = 60.0  # and between lines elsewhere


class Progress:
    """Counts images and tells on stderr how many there are, how fast, and how long it takes yet."""

    def __init__(self, name: str, total: int, done: int = 0):
        """`done` images of `total` (0 where it is not known) are there from an earlier attempt."""
        self._name = name
        self._total = total
        self._before = self._done = done
        self._start = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def add(self, images: int) -> None:
        self._done += images
        if time.monotonic() - self._told >= (REFRESH if self._terminal else INTERVAL):
            self._tell()

    def close(self) -> None:
        """Leaves the last count on the terminal."""
        if self._terminal and self._done > self._before:
            self._tell()
            print(file=sys.stderr, flush=True)

    def _tell(self) -> None:
        now = time.monotonic()
        self._told = now
        rate = (self._done - self._before) / max(now - self._start, 1e-3)
        text = describe(self._name, self._done, self._total, rate)
        if self._terminal:
            print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)


def describe(name: str, done: int, total: int, rate: float) -> str:
    """Returns the line; `rate` is in images per second."""
    if not total:
        return f"{name}: {done:,} images, {rate:,.0f} images/s"
    text = f"{name}: {done:,} of {total:,} images ({done / total:.1%}), {rate:,.0f} images/s"
    if rate > 0 and done < total:
        text += f", {duration((total - done) / rate)} left"
    return text


def duration(seconds: float) -> str:
    """Returns a time in the two units that matter, as in "3 h 12 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def size(number: float) -> str:
    """Returns a number of bytes in the unit that suits it, as in "12.4 GB"."""
    units = ["kB", "MB", "GB", "TB"]
    while number >= 1e6 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number / 1000:.1f} {units[0]}" if number < 1e4 else f"{number / 1000:.0f} {units[0]}"
