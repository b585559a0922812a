"""An inspection in words: a table, and a sentence for everything that needs attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from xtra_jax.data.decode import describe_decoder
from xtra_jax.data.resize import describe_resizer
from xtra_jax.inspection.captions import classes_line, training_data
from xtra_jax.inspection.inputs import NO_ENCODER, Inputs
from xtra_jax.inspection.pixels import PixelStatistics
from xtra_jax.inspection.speed import Pipeline

if TYPE_CHECKING:
    from xtra_jax.inspection.job import Inspection

_NAMED_UNUSABLE = 5
# Of the mean of normalised pixels from 0, or of the logarithm of their spread.
_FAR = 0.25
_FAR_WITH_RANDAUGMENT = 0.5  # which spreads pixels
_BOUND_BY_INPUT = 0.1  # share of the time spent waiting from which on input holds a run up


def describe(found: Inspection) -> str:
    """The table, then the remarks."""
    rows = [
        ("training", _source_line(found.inputs, "train")),
        ("evaluation", _source_line(found.inputs, "evaluation")),
        ("classes", classes_line(found.classes, found.inputs.config.data)),
        ("unusable", _unusable_line(found)),
        *_pixel_rows(found.stages.pixels, found.inputs),
        ("decoder", describe_decoder()),
        ("resizer", _resizer(found.inputs)),
        ("one process", _stages_line(found)),
        ("pipeline", _pipeline_line(found)),
    ]
    if found.run:
        waits = f"waiting for input {found.run.input_wait:.0%} of the time"
        rate = _rate(found.run.images_per_s)
        rows.append(("run", f"{found.run.workdir}: {rate}, {waits}"))
    rows.append(("written", f"{found.out}: {', '.join(found.files)}"))
    width = max(len(name) for name, _ in rows) + 2
    table = "\n".join(f"{name:{width}}{text}" for name, text in rows)
    return "\n\n".join([table, *remarks(found)])


def remarks(found: Inspection) -> list[str]:
    """What the figures mean, one sentence each."""
    said = [_bottleneck(found)] if found.pipeline else []
    pixels, inputs = found.stages.pixels, found.inputs
    far = _FAR_WITH_RANDAUGMENT if inputs.config.data.get("randaugment") else _FAR
    if pixels and pixels.distance > far:
        keys = "the encoder's mean and std" if inputs.encoder else "data.mean and data.std"
        right = f"mean {_triple(pixels.mean)} and std {_triple(pixels.spread)}"
        said.append(
            f"These pixels are far from {keys}: normalised, they should have mean 0 and spread 1, "
            f"and they have {_triple(pixels.normalised_mean)} and "
            f"{_triple(pixels.normalised_spread)}; {right} would be theirs."
        )
    if inputs.encoder == NO_ENCODER:
        said.append(
            f"No checkpoint is named, so image size, grid, mean and std are those of {NO_ENCODER}: "
            "name the encoder with --checkpoint."
        )
    wanted, has = inputs.config.data.get("num_classes"), inputs.train.num_classes
    if wanted is not None and wanted != has:
        told = "has no labels" if has is None else f"has {has} classes"
        said.append(
            f"{inputs.config.data.dataset} {told}, and data.num_classes={wanted}: xtra probe "
            "refuses that."
        )
    unusable = found.stages.unusable
    if unusable:
        named = [f"  {record.key}: {record.reason}" for record in unusable[:_NAMED_UNUSABLE]]
        more = len(unusable) - len(named)
        last = [f"  and {more:,} more, in inspect.json"] if more else []
        said.append("\n".join(["Unusable:", *named, *last]))
    return said


def _source_line(inputs: Inputs, which: str) -> str:
    data = inputs.config.data
    if which == "train":
        return f"{training_data(data)}: {len(inputs.train):,} images"
    if inputs.evaluation is None:
        return "none: data.eval_split is empty"
    dataset = data.eval_dataset or data.dataset
    return f"{dataset}, {data.eval_split}: {len(inputs.evaluation):,} images"


def _unusable_line(found: Inspection) -> str:
    number = len(found.stages.unusable)
    looked = found.stages.images + number
    all_of_them = looked == found.stages.records
    which = f"all {looked:,} images" if all_of_them else f"{looked:,} images drawn at random"
    return f"{number:,} of {which}" if number else f"none of {which}"


def _resizer(inputs: Inputs) -> str:
    how = describe_resizer(inputs.train_transform.resize)
    return f"the device; larger crops than its canvas: {how}" if inputs.on_device else how


def _pixel_rows(pixels: PixelStatistics | None, inputs: Inputs) -> list[tuple[str, str]]:
    if pixels is None:
        return []
    return [
        (
            "mean",
            f"{_triple(pixels.mean)}, config {_triple(inputs.mean)}, "
            f"normalised {_triple(pixels.normalised_mean)}",
        ),
        (
            "spread",
            f"{_triple(pixels.spread)}, config {_triple(inputs.std)}, "
            f"normalised {_triple(pixels.normalised_spread)}",
        ),
    ]


def _stages_line(found: Inspection) -> str:
    if not found.stages.images:
        return "no image could be used"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.stages.shares.items())
    return f"{_rate(found.stages.images_per_s)} on one core: {shares}"


def _pipeline_line(found: Inspection) -> str:
    if not found.pipeline:
        return "not measured"
    cores = found.pipeline.cores
    on = f"{cores} core{'s' if cores > 1 else ''}"
    return f"{_rate(found.pipeline.images_per_s)} with {_workers(found.pipeline)} on {on}"


def _bottleneck(found: Inspection) -> str:
    """Whether input holds training up, as far as it can be known."""
    pipeline, run = found.pipeline, found.run
    fed = pipeline.images_per_s
    per_core = max(found.stages.images_per_s, fed / max(pipeline.workers, 1))
    feeds = f"With {_workers(pipeline)} this machine feeds {_rate(fed)}"
    if run is None:
        return (
            f"{feeds}: training that takes in more waits for input. Another core adds at most "
            f"{_rate(per_core)}. (--workdir compares a run.)"
        )
    trains = f"{run.workdir} trains at {_rate(run.images_per_s)}"
    waits = f"{run.input_wait:.0%} of the time"
    wanted = run.images_per_s_without_waiting
    cores = f"at least {math.ceil(wanted / per_core)} cores like these"
    if run.input_wait >= _BOUND_BY_INPUT:
        return (
            f"{feeds}, and {trains}, where it waits for input {waits}: input is the bottleneck. "
            f"Without waiting it would take about {_rate(wanted)}, for which it needs {cores}."
        )
    if fed < run.images_per_s:
        return (
            f"{feeds}, and {trains}, fed by more than this: here input would be the bottleneck, "
            f"and it would take {cores} to feed that run."
        )
    return f"{feeds}, and {trains}, waiting {waits}: input is not the bottleneck."


def _workers(pipeline: Pipeline) -> str:
    if pipeline.workers == 0:
        return "threads of one process"
    return f"{pipeline.workers} worker{'s' if pipeline.workers > 1 else ''}"


def _rate(images_per_s: float) -> str:
    digits = 0 if images_per_s >= 20 else 1
    return f"{images_per_s:,.{digits}f} images/s"


def _triple(values) -> str:
    # A zero that was rounded to has no sign.
    return " ".join(f"{value + 0.0:.3f}".replace("-0.000", "0.000") for value in values)
