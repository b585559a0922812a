"""Accuracy against learning rate, as a picture: a panel for each data set."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from xtra_jax.probing.bootstrap import accuracy_interval
from xtra_jax.probing.results import History, Results, best_head, describe_group

_COLORS = {"attentive": "#1f5fa8", "linear": "#c45a00"}
_INK, _FAINT, _GRID = "#1e2024", "#63676f", "#dfe2e7"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "os^DvPX"  # the next one each time that the dashes begin anew
_COLUMNS = 3  # panels side by side
_PANEL = (4.6, 3.6)  # inches
_ALONE = (7.0, 4.8)


def rate_curves(histories: Sequence[History]) -> dict[str, list[History]]:
    """The heads that differ in their learning rate alone, by what they share, by rising rate."""
    curves: dict[str, list[History]] = {}
    for history in histories:
        curves.setdefault(describe_group(history, histories), []).append(history)
    return {
        name: sorted(curve, key=lambda history: history.setting.rate)
        for name, curve in curves.items()
    }


def draw_rates(studies: Mapping[str, Results]) -> bytes:
    """A PNG of top-1 on the reported examples against the learning rate, on a logarithmic axis.

    Each panel has a line for every group of heads. A star marks the head of each kind that the
    table has, and a band the 95 % bootstrap intervals along the line it lies on.

    Args:
        studies: by what the panels call their data sets.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(studies))
    rows = math.ceil(len(studies) / columns)
    width, height = _ALONE if len(studies) == 1 else _PANEL
    figure = Figure(figsize=(columns * width, rows * height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = line_styles(studies)
    for panel, (label, results) in zip(axes, studies.items(), strict=False):
        _draw_panel(panel, label, results, styles)
    for panel in axes[len(studies) :]:
        panel.set_visible(False)
    figure.legend(
        handles=_legend(styles),
        loc="outside lower center",
        ncols=2 if len(studies) == 1 else 2 * columns,
        fontsize=9,
        frameon=False,
        labelcolor=_INK,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def line_styles(studies: Mapping[str, Results]) -> dict[str, dict]:
    """How a line is drawn, by what its heads share: the same in every panel."""
    kinds = {
        name: curve[0].kind
        for results in studies.values()
        for name, curve in rate_curves(results.histories).items()
    }
    styles = {}
    for name, kind in kinds.items():
        turn, dash = divmod(sum(kinds[other] == kind for other in styles), len(_DASHES))
        styles[name] = {
            "color": _COLORS[kind],
            "linestyle": _DASHES[dash],
            "marker": _MARKERS[turn % len(_MARKERS)],
        }
    return styles


def _legend(styles: Mapping[str, dict]) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [Line2D([], [], markersize=4, label=name, **style) for name, style in styles.items()]
    star = Line2D([], [], marker="*", markersize=12, color=_FAINT, linestyle="", label="chosen")
    return [*lines, star, Patch(color=_FAINT, alpha=0.2, label="95 % bootstrap interval")]


def _draw_panel(panel, label: str, results: Results, styles: Mapping[str, dict]) -> None:
    histories, provenance = results
    chosen = [best_head(histories, kind) for kind in {h.kind for h in histories}]
    for name, curve in rate_curves(histories).items():
        starred = next((head for head in chosen if head in curve), None)
        _draw_curve(panel, curve, starred, styles[name])
    _label(panel, histories)
    where = "these images" if provenance.select == "test" else "held-out training images"
    split = provenance.config["data"]["eval_split"]
    panel.set_title(
        f"{label} ({split}), chosen on {where}",
        loc="left",
        color=_INK,
        fontsize=10,
        parse_math=False,
    )


def _draw_curve(panel, curve: Sequence[History], starred: History | None, style: dict) -> None:
    """One line, with a star and a band where a chosen head lies on it."""
    rates = [history.setting.rate for history in curve]
    panel.plot(
        rates,
        [100 * history.test.accuracy for history in curve],
        linewidth=1.8 if starred else 1.1,
        markersize=4 if starred else 3,
        **style,
    )
    if starred is None:
        return
    ends = [accuracy_interval(h.test.correct, h.test.total) for h in curve]
    low, high = ([100 * share for share in shares] for shares in zip(*ends, strict=True))
    panel.fill_between(rates, low, high, color=style["color"], alpha=0.13, linewidth=0)
    panel.plot(
        starred.setting.rate,
        100 * starred.test.accuracy,
        marker="*",
        markersize=15,
        color=style["color"],
        markeredgecolor="white",
        zorder=5,
    )


def _label(panel, histories: Sequence[History]) -> None:
    """Axes, their units and the grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    rates = [history.setting.rate for history in histories]
    panel.set_xscale("log")
    panel.set_xlim(min(rates) / 1.35, max(rates) * 1.35)
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}".replace("e-0", "e-")))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("effective learning rate", color=_FAINT)
    panel.set_ylabel("top-1 accuracy, %", color=_FAINT)
    panel.grid(color=_GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=_FAINT, labelsize=9, length=0)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(_GRID)
