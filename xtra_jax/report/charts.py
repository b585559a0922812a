"""Line charts as SVG, in the page's own colours and without a script.

A chart is drawn in the width of a phone and set in columns where there is more room, so that its
texts are as large on every screen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from xtra_jax.report.html import text
from xtra_jax.report.scales import Scale, linear_scale, log_scale, written

WIDTH, HEIGHT = 380, 250  # in the units of a chart, of which a narrow screen has about as many
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 26, 38
_DOTS = 20  # a line of more points shows none of them
_MOST = 300  # points of a line; more are averaged
COLORS = 6  # of the page's style


@dataclasses.dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: in the legend.
        points: (x, y); a y that is not finite leaves a gap.
        color: number of a colour, from 0.
        dashed: as a second line of the same colour.
        band: (low, high) around each point.
        star: the index of a point to mark, or None.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dashed: bool = False
    band: Sequence[tuple[float, float]] = ()
    star: int | None = None


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    from_zero: bool = False,
) -> str:
    """A figure with its title, its legend and a description for those who cannot see it.

    Args:
        series: with at least one finite value between them.
        x_label, y_label: of the axes, with units.
        log_x: a logarithmic x axis.
        from_zero: the y axis begins at 0.
    """
    shortened = [_averaged(line) for line in series]
    shown = [line for line, _ in shortened]
    per_point = max(count for _, count in shortened)
    xs = [x for line in shown for x, y in line.points if math.isfinite(y)]
    ys = [y for line in shown for _, y in line.points if math.isfinite(y)]
    ys += [end for line in shown for ends in line.band for end in ends]
    across = log_scale(xs) if log_x else linear_scale(xs, most_ticks=7, tight=True)
    up = linear_scale([*ys, 0.0] if from_zero else ys)
    drawn = "".join(_drawn(line, across, up) for line in sorted(shown, key=_starred))
    about = f"A point of a line is the mean of up to {per_point} logged values."
    below = f'<p class="note">{about}</p>' if per_point > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text(_described(title, series, x_label, y_label))}">'
        f"{_axes(across, up, x_label, y_label)}{drawn}</svg>{_legend(shown)}{below}</figure>"
    )


def _starred(line: Series) -> bool:
    return line.star is not None


def _averaged(line: Series) -> tuple[Series, int]:
    """A line of few enough points, and how many of its own make one."""
    count = math.ceil(len(line.points) / _MOST)
    if count <= 1:
        return line, 1
    groups = [line.points[i : i + count] for i in range(0, len(line.points), count)]
    points = [_mean(group) for group in groups]
    return dataclasses.replace(line, points=points), count


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(points), sum(ys) / len(points)


def _place(across: Scale, up: Scale, x: float, y: float) -> tuple[float, float]:
    right = _LEFT + across.at(x) * (WIDTH - _LEFT - _RIGHT)
    down = HEIGHT - _BOTTOM - up.at(y) * (HEIGHT - _TOP - _BOTTOM)
    return right, down


def _drawn(line: Series, across: Scale, up: Scale) -> str:
    """Band, line, dots with what they stand for, and star."""
    parts = []
    if line.band:
        edge = [
            *((x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)),
            *reversed([(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]),
        ]
        corners = " ".join(_pair(_place(across, up, *point)) for point in edge)
        parts.append(f'<polygon class="band c{line.color % COLORS}" points="{corners}"/>')
    dashed = " dashed" if line.dashed else ""
    dots = len(line.points) <= _DOTS
    for run in _without_gaps(line.points):
        places = [_place(across, up, *point) for point in run]
        corners = " ".join(map(_pair, places))
        parts.append(f'<polyline class="line c{line.color % COLORS}{dashed}" points="{corners}"/>')
        if dots or len(run) == 1:
            parts += [
                f'<circle class="dot c{line.color % COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
                f"<title>{text(f'{line.name}: {_exact(b)} at {_exact(a)}')}</title></circle>"
                for (x, y), (a, b) in zip(places, run, strict=True)
            ]
    if line.star is not None:
        x, y = _place(across, up, *line.points[line.star])
        parts.append(f'<path class="star c{line.color % COLORS}" d="{_star(x, y)}"/>')
    return "".join(parts)


def _without_gaps(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _axes(across: Scale, up: Scale, x_label: str, y_label: str) -> str:
    parts = []
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for tick in up.ticks:
        _, y = _place(across, up, across.low, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{written(tick)}</text>')
    for tick in across.ticks:
        x, _ = _place(across, up, tick, up.low)
        # The text of a tick at the right end would stick out.
        end = "end" if x > right - 8 else "middle"
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" class="{end}">{written(tick)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{text(x_label)}</text>')
    parts.append(f'<text x="0" y="11">{text(y_label)}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2 and not any(line.star is not None for line in series):
        return ""
    entries = [
        (f"line c{line.color % COLORS}{' dashed' if line.dashed else ''}", "M1 5H25", line.name)
        for line in series
    ]
    if any(line.star is not None for line in series):
        entries.append(("star plain", _star(13, 5), "chosen"))
    if any(line.band for line in series):
        entries.append(("band plain", "M1 1H25V9H1Z", "95 % bootstrap interval"))
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><path class="{style}" d="{path}"/></svg>'
        f"{text(name)}</li>"
        for style, path, name in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _star(x: float, y: float) -> str:
    """The outline of a five-pointed star."""
    corners = []
    for i in range(10):
        radius, angle = (7.5, 3.2)[i % 2], math.pi * (i / 5 - 0.5)
        corners.append(f"{x + radius * math.cos(angle):.1f} {y + radius * math.sin(angle):.1f}")
    return f"M{'L'.join(corners)}Z"


def _pair(place: tuple[float, float]) -> str:
    return f"{place[0]:.1f},{place[1]:.1f}"


def _exact(value: float) -> str:
    return f"{value:.6g}"


def _described(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A chart in words: where each line begins and ends."""
    parts = [f"{title}: {y_label} against {x_label}."]
    for line in series:
        points = [point for point in line.points if math.isfinite(point[1])]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            parts.append(
                f"{line.name}: {_exact(y0)} at {_exact(x0)}, {_exact(y1)} at {_exact(x1)}."
            )
    return " ".join(parts)
