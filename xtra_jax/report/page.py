"""The page: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import datetime
import json
import shlex
import statistics

import xtra_jax
from xtra_jax.config import config_diff, load
from xtra_jax.report import html
from xtra_jax.report.pictures import ERROR_GAIN, Pictures, data_uri
from xtra_jax.report.probes import highlights, probes
from xtra_jax.report.run import Run
from xtra_jax.report.style import STYLE
from xtra_jax.report.training import training

_PAPER = "https://arxiv.org/abs/2411.15648"


def page(run: Run, pictures: Pictures, *, named: str, written: datetime.datetime) -> str:
    """The whole page.

    Args:
        named: the run's working directory, as commands on the page name it.
        written: when, in UTC.
    """
    where = shlex.quote(named)
    sections = {
        "training": ("Training", training(run)),
        "reconstructions": ("Reconstructions", _reconstructions(run, pictures, where)),
        "probes": (
            "Probes",
            probes(
                run, pictures, f"xtra probe --config configs/probe.py:NAME --checkpoint {where}"
            ),
        ),
        "config": ("Config", _config(run)),
        "provenance": ("Provenance", _provenance(run, pictures)),
    }
    title = f"{run.config.name}: report of a run"
    links = "".join(f'<a href="#{key}">{name}</a>' for key, (name, _) in sections.items())
    body = "".join(html.section(key, name, inside) for key, (name, inside) in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.text(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.text(run.config.name)}</h1>"
        f'<p class="subtitle">{html.text(_subtitle(run))}</p>{_tiles(run, pictures)}'
        f"<nav>{links}</nav></header>\n<main>{body}</main>\n"
        f"<footer>{_footer(written)}</footer>\n</body>\n</html>\n"
    )


def _subtitle(run: Run) -> str:
    model, data = run.config.model, run.config.data
    if run.imported is not None:
        return f"An encoder with weights from elsewhere, in {run.path.name}."
    return (
        f"XTRA, {model.variant} encoder with {model.patch_size}-pixel patches in blocks of "
        f"{model.block_size} x {model.block_size} tokens, on {data.dataset} at {model.image_size} "
        "pixels."
    )


def _tiles(run: Run, pictures: Pictures) -> str:
    """The few numbers that one looks for first."""
    tiles = []
    if run.step or run.metrics:
        of = "of a run of unknown length" if run.planned is None else f"of {run.planned:,}"
        tiles.append(("steps", f"{run.step:,}", of))
    for name, label in (("loss", "training loss"), ("validation/loss", "validation loss")):
        points = run.series(name)
        if points:
            tiles.append((label, f"{points[-1][1]:.4f}", f"at step {points[-1][0]:,}"))
    speeds = [value for _, value in run.series("images_per_s")]
    if speeds:
        tiles.append(("speed", f"{statistics.median(speeds):,.0f}", "images/s, median"))
    if pictures.sha256:
        tiles += [
            (f"{kind} probe", percent, where)
            for kind, percent, where in highlights(run.studies, pictures.sha256)
        ]
    inside = "".join(
        f"<div><dt>{html.text(name)}</dt><dd>{html.text(value)}<small>{html.text(more)}</small>"
        "</dd></div>"
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{inside}</dl>' if tiles else ""


def _reconstructions(run: Run, pictures: Pictures, where: str) -> str:
    if pictures.columns:
        model = run.config.model
        parts = ["image", "prediction", f"absolute error, times {ERROR_GAIN}"]
        about = (
            f"Held-out images at step {pictures.step:,}. In each column, from top to bottom: the "
            f"image; what is predicted of every {model.block_size} x {model.block_size}-token "
            f"block from the blocks before it; the absolute error, times {ERROR_GAIN}. The first "
            "block, framed, is given."
        )
        if run.config.loss.norm_pix:
            about += (
                " Predictions are of normalised pixels: every block is shown with the mean and "
                "the spread of the true block."
            )
        figures = "".join(
            "<figure>"
            + "".join(
                f'<img src="{data_uri(png)}" alt="{html.text(f"image {number}: {part}")}">'
                for part, png in zip(parts, column, strict=True)
            )
            + "</figure>"
            for number, column in enumerate(pictures.columns, start=1)
        )
        return f'<p>{html.text(about)}</p><div class="pictures">{figures}</div>'
    command = f"xtra reconstruct --checkpoint {where} --out {where}/reconstruction.png"
    why = f"Pictures could not be drawn with this page: {pictures.reason}."
    if not pictures.sheet:
        return html.missing(f"{why} This draws them, and --images names others:", command)
    sheet = f'<img src="{data_uri(pictures.sheet)}" alt="images, predictions and errors">'
    return (
        f"<p>{html.text(why)} These are of an earlier <code>xtra reconstruct</code>.</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="reconstructions">{sheet}</div>'
    )


def _config(run: Run) -> str:
    base = load("configs/base.py")
    changed = "".join(
        f"<li><strong>{html.text(key)}</strong> {html.text(_value(ours))} "
        f"<small>(base: {html.text(_value(theirs))})</small></li>"
        for key, (theirs, ours) in config_diff(base, run.config).items()
    )
    whole = html.code(json.dumps(run.saved.to_dict(), indent=2))
    return (
        "<p>What differs from <code>configs/base.py</code>:</p>"
        f'<ul class="keys">{changed}</ul>{html.folded("The whole config", whole)}'
    )


def _value(value: object) -> str:
    if value is None:
        return "no such key"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "()"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _provenance(run: Run, pictures: Pictures) -> str:
    data, position = run.config.data, run.position
    rows = [
        ("working directory", run.path.name),
        ("checkpoints on disk", ", ".join(f"{step:,}" for step in run.steps) or "none complete"),
        ("SHA-256 of the newest encoder", pictures.sha256 or "no encoder could be read"),
        ("training data", f"{data.dataset}, split {data.train_split}{_subset(data)}"),
    ]
    if position.get("examples") is not None:
        rows.append(("training images", f"{position['examples']:,}"))
    if position.get("records"):
        rows.append(("digest of their records", position["records"]))
    evaluated = data.eval_dataset or data.dataset
    rows.append(
        ("held-out data", f"{evaluated}, split {data.eval_split}" if data.eval_split else "none")
    )
    rows.append(("images that could not be used", f"{run.bad_images:,}"))
    rows.append(("seed", run.config.seed))
    times = run.times()
    if times:
        first, last = times
        rows.append(("first metrics", f"{first:%Y-%m-%d %H:%M} UTC"))
        rows.append(("last metrics", f"{last:%Y-%m-%d %H:%M} UTC"))
    versions = ", ".join(f"{name} {version}" for name, version in run.libraries.items())
    rows.append(("versions that wrote the newest checkpoint", versions or "not recorded"))
    devices = dict.fromkeys(r.provenance.devices for s in run.studies for r in s.results.values())
    rows.append(("devices of the training", "not recorded"))
    if devices:
        rows.append(("devices of the probes", ", ".join(devices)))
    if run.imported is not None:
        rows.append(("imported from", str(run.imported.get("source", "")).rpartition("/")[2]))
    return html.facts(rows)


def _subset(data) -> str:
    return f", of it {data.subset}" if data.subset else ""


def _footer(written: datetime.datetime) -> str:
    return (
        f"Written by xtra_jax {html.text(xtra_jax.__version__)} on {written:%Y-%m-%d at %H:%M} "
        f'UTC. The method: <a href="{_PAPER}">Amrani, Karlinsky, Bronstein, CVPR 2025</a>.'
    )
