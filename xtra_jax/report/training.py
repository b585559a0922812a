"""The part of the page that says how the training went: curves of everything that was logged."""

from __future__ import annotations

import math
import re

from xtra_jax.report import html
from xtra_jax.report.charts import Series, chart
from xtra_jax.report.run import Run

_LOSSES = {"mse": "mean squared error", "l1": "mean absolute error"}
_SIGNALS = "signals/"
# What else a run logs: the chart's title, its y axis with the unit, and what to multiply by.
_OTHERS = {
    "grad_norm": ("Gradient", "global norm, before clipping", 1),
    "param_norm": ("Weights", "global norm", 1),
    "update_norm": ("Update of the weights", "global norm", 1),  # logged in earlier versions
    "step_ms": ("Time of a step", "milliseconds", 1),
    "compute": ("Waiting for the devices", "share of the time, %", 100),
    "input_wait": ("Waiting for input", "share of the time, %", 100),
    "host": ("Dispatching, logging and saving", "share of the time, %", 100),
    "mfu": ("Use of the devices (MFU)", "share of their peak FLOP/s, %", 100),
    "bad_images": ("Images that could not be used", "images", 1),
    "signals/seconds": ("Time of a few-shot and k-NN measurement", "seconds", 1),
}
_SHOWN_ABOVE = ("step", "time", "loss", "lr", "images_per_s", "validation/loss")


def training(run: Run) -> str:
    """Curves of loss, learning rate, speed and signals; the others are folded away."""
    if not any(name in line for line in run.metrics for name in _SHOWN_ABOVE[2:]):
        return html.missing(_no_curves(run))
    charts = [_losses(run), _learning_rate(run), _speed(run), *_signals(run)]
    parts = [f'<div class="charts">{"".join(charts)}</div>']
    if not run.names(_SIGNALS):
        parts.append(
            html.missing(
                "Few-shot and k-NN accuracies were not measured while this run trained. A run "
                "measures them on a small labelled set where its config says so:",
                "xtra pretrain ... --config.signals.every=1000 --config.signals.dataset=NAME",
            )
        )
    others = [
        _line_chart(run, title, name, label, factor)
        for name, (title, label, factor) in _others(run).items()
    ]
    if any(others):
        grid = f'<div class="charts">{"".join(others)}</div>'
        parts.append(html.folded("Everything else that was logged", grid))
    return "".join(parts)


def _no_curves(run: Run) -> str:
    if run.imported is not None:
        return "These weights came from elsewhere, so there are no curves of their training."
    return "No metrics were logged here yet: a run logs its first after log_every steps."


def _losses(run: Run) -> str:
    names = {"loss": "training", "validation/loss": "validation"}
    found = [
        Series(label, run.series(name), color)
        for color, (name, label) in enumerate(names.items())
        if _drawable(run.series(name))
    ]
    what = _LOSSES.get(run.config.loss.kind, run.config.loss.kind)
    pixels = "normalised pixels" if run.config.loss.norm_pix else "pixels"
    return _unless_empty("Loss", found, f"{what} of {pixels}")


def _learning_rate(run: Run) -> str:
    return _line_chart(run, "Learning rate", "lr", "learning rate", 1)


def _speed(run: Run) -> str:
    return _line_chart(run, "Speed", "images_per_s", "images per second", 1)


def _signals(run: Run) -> list[str]:
    """A chart of the few-shot and one of the k-NN accuracies."""
    charts = []
    dataset = run.config.signals.dataset
    for prefix, title, name_of in (
        ("few_shot_", "Few-shot", "{} per class"),
        ("knn_", "k-NN", "{} neighbours"),
    ):
        found = [
            Series(name_of.format(name.rpartition("_")[2]), _times(run.series(name), 100), color)
            for color, name in enumerate(run.names(_SIGNALS + prefix))
            if _drawable(run.series(name))
        ]
        charts.append(
            _unless_empty(f"{title}{f' on {dataset}' if dataset else ''}", found, "accuracy, %")
        )
    return charts


def _others(run: Run) -> dict[str, tuple[str, str, float]]:
    shown = {*_SHOWN_ABOVE, *(name for name in run.names(_SIGNALS) if name not in _OTHERS)}
    left = [name for name in run.names("") if name not in shown]
    return {name: _OTHERS.get(name, (_words(name), _words(name), 1)) for name in left}


def _words(name: str) -> str:
    return re.sub(r"[_/]+", " ", name)


def _line_chart(run: Run, title: str, name: str, label: str, factor: float) -> str:
    points = run.series(name)
    return _unless_empty(title, [Series(title, _times(points, factor))], label, from_zero=True)


def _unless_empty(title: str, series: list[Series], label: str, **options) -> str:
    if not any(_drawable(line.points) for line in series):
        return ""
    return chart(title, series, x_label="step", y_label=label, **options)


def _drawable(points) -> bool:
    return any(math.isfinite(y) for _, y in points)


def _times(points, factor: float) -> list[tuple[float, float]]:
    return [(x, factor * y) for x, y in points]
