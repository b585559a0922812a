"""The inspection job: from a config to pictures and figures of what the model will see."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
from ml_collections import ConfigDict
from PIL import Image

from xtra_jax.errors import UserError
from xtra_jax.inspection import captions
from xtra_jax.inspection.classes import ClassCounts, count_classes, draw_histogram
from xtra_jax.inspection.figures import as_json
from xtra_jax.inspection.inputs import Inputs, open_inputs
from xtra_jax.inspection.sheets import CROP_COLORS, draw_samples, draw_views
from xtra_jax.inspection.speed import OneProcess, Pipeline, time_pipeline, time_stages
from xtra_jax.inspection.training_run import TrainingRun, read_run
from xtra_jax.inspection.views import crop_views, eval_samples, train_samples
from xtra_jax.training.storage import absolute, explained, write_text

VIEWED = 4  # images whose crops are shown
TRAINING, EVALUATION, CROPS, CLASSES = "training.png", "evaluation.png", "crops.png", "classes.png"
FIGURES = "inspect.json"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        files: names of what was written into the folder `out`.
        run: what an earlier or running training needs; None where none was named.
    """

    out: str
    inputs: Inputs
    classes: ClassCounts
    stages: OneProcess
    pipeline: Pipeline | None
    run: TrainingRun | None
    files: list[str]


def inspect(
    config: ConfigDict,
    out: str = "",
    *,
    count: int = 24,
    seconds: float = 5.0,
    workdir: str = "",
) -> Inspection:
    """Looks at the input of a pretraining or a probe, and writes pictures and figures of it.

    From here on this process computes on its CPU, whatever accelerators the machine has.

    Args:
        config: of either kind.
        out: the folder to write into, made if missing; `inspect/<name>` when empty.
        count: training samples, and evaluation samples, to draw.
        seconds: for each of three looks: at labels, at single stages, at the whole pipeline.
        workdir: of a run, to compare its images/s with.

    Raises:
        UserError: config, data, checkpoint or run can't be read, `out` can't be written, or none
            of the images looked at can be used.
    """
    if count < 1:
        raise UserError(f"--count={count}, and must be at least 1")
    if not seconds > 0:
        raise UserError(f"--seconds={seconds:g}, and must be above 0")
    # Nothing here needs an accelerator, and the machine's may be busy training.
    jax.config.update("jax_platforms", "cpu")
    inputs = open_inputs(config)
    run = read_run(workdir) if workdir else None
    out = out or os.path.join("inspect", config.name)
    with explained(f"cannot make the folder {out}"):
        absolute(out).mkdir(parents=True, exist_ok=True)
    stages = time_stages(inputs, seconds)
    found = Inspection(
        out,
        inputs,
        count_classes(inputs.train, seconds),
        stages,
        time_pipeline(inputs, seconds, stages.images_per_s) if stages.images else None,
        run,
        [],
    )
    with explained(f"cannot write to {out}"):
        _draw(found, count)
        _write(found)
    if not stages.images:
        raise UserError(
            f"none of the {len(stages.unusable)} images looked at can be used; {out}/{FIGURES} "
            f"lists them, the first is {stages.unusable[0].key}: {stages.unusable[0].reason}"
        )
    return found


def _draw(found: Inspection, count: int) -> None:
    """Draws the pictures, and notes their names."""
    inputs, grid, name = found.inputs, found.inputs.grid, found.inputs.config.name

    def keep(file: str, page: Image.Image) -> None:
        with (absolute(found.out) / file).open("wb") as opened:
            page.save(opened, "PNG")
        found.files.append(file)

    shown = train_samples(inputs, min(count, len(inputs.train)))
    page, _ = draw_samples(shown, grid, f"{name}: training samples", captions.about_samples(inputs))
    keep(TRAINING, page)
    if inputs.evaluation is not None:
        shown = eval_samples(inputs, min(count, len(inputs.evaluation)))
        about = captions.about_evaluation(inputs)
        keep(EVALUATION, draw_samples(shown, grid, f"{name}: evaluation samples", about)[0])
    views = crop_views(inputs, min(VIEWED, len(inputs.train)), len(CROP_COLORS))
    if views:
        about = captions.about_crops(inputs)
        title = f"{name}: crops, and what they are cut from"
        keep(CROPS, draw_views(views, grid.image_size, title, about)[0])
    if found.classes.names:
        about = captions.about_classes(found.classes, inputs.config.data)
        keep(CLASSES, draw_histogram(found.classes, f"{name}: images per class", about))


def _write(found: Inspection) -> None:
    found.files.append(FIGURES)
    text = json.dumps(as_json(found), indent=1) + "\n"
    write_text(absolute(found.out) / FIGURES, text)
