"""Axes: which numbers stand on them, how these read, and where a value lies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_STEPS = (1, 2, 2.5, 5, 10)  # of a linear axis, times a power of ten
_LOG_STEPS = ((1,), (1, 3), (1, 2, 5))  # of a logarithmic one, within each power of ten


@dataclasses.dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`; `ticks` are the values that are written on it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def linear_scale(values: Sequence[float], *, most_ticks: int = 6, tight: bool = False) -> Scale:
    """A linear axis on which all values lie, with ticks at round numbers.

    Args:
        values: finite, at least one.
        tight: ends where the values end, and not at the ticks around them.
    """
    low, high = min(values), max(values)
    if low == high == 0:
        high = 1.0
    elif low == high:
        low, high = low - abs(low) / 2, high + abs(high) / 2
    step = _round_step((high - low) / (most_ticks - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    if tight:
        slack = 1e-9 * (high - low)
        return Scale(low, high, tuple(t for t in ticks if low - slack <= t <= high + slack))
    return Scale(ticks[0], ticks[-1], tuple(ticks))


def log_scale(values: Sequence[float], *, most_ticks: int = 6) -> Scale:
    """A logarithmic axis on which all values lie, a little apart from its ends.

    Args:
        values: above 0, at least one.
    """
    low, high = min(values) / 1.25, max(values) * 1.25
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in _LOG_STEPS:
        marks = [factor * 10.0**power for power in powers for factor in factors]
        found = [mark for mark in marks if low <= mark <= high]
        if len(found) > most_ticks and ticks:
            break
        ticks = found
    every = math.ceil(len(ticks) / most_ticks) if ticks else 1
    return Scale(low, high, tuple(ticks[::every]), log=True)


def written(value: float) -> str:
    """A number on an axis, as short as it can be: 0.002, 12,000, 1.5M, 1e-5."""
    size = abs(value)
    if size and size < 1e-4:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e3:
        return f"{value:,.10g}"
    return f"{value:.4g}"


def _round_step(step: float) -> float:
    """The smallest round number that is at least a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in _STEPS if power * factor >= step * (1 - 1e-9))
