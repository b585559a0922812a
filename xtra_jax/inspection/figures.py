"""An inspection as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xtra_jax.inspection.inputs import Inputs
from xtra_jax.inspection.pixels import CHANNELS, PixelStatistics
from xtra_jax.inspection.report import remarks

if TYPE_CHECKING:
    from xtra_jax.inspection.job import Inspection


def as_json(found: Inspection) -> dict[str, Any]:
    """All figures, by name."""
    inputs, stages, pipeline = found.inputs, found.stages, found.pipeline
    data, counts = inputs.config.data, found.classes
    evaluation = None
    if inputs.evaluation is not None:
        evaluation = {
            "dataset": data.eval_dataset or data.dataset,
            "split": data.eval_split,
            "images": len(inputs.evaluation),
        }
    return {
        "name": inputs.config.name,
        "training": {
            "dataset": data.dataset,
            "split": data.train_split,
            "subset": data.subset or None,
            "mixture": list(data.mixture) or None,
            "images": len(inputs.train),
        },
        "evaluation": evaluation,
        "encoder": inputs.encoder or None,
        "image": {
            "size": inputs.grid.image_size,
            "patch_size": inputs.grid.patch_size,
            "block_size": inputs.grid.block_size,
        },
        "classes": {
            "number": len(counts.names),
            "labels_looked_at": counts.looked_at,
            "complete": counts.complete,
            "unlabelled": counts.unlabelled,
            "unreadable": counts.unreadable,
            "counts": dict(zip(counts.names, counts.counts.tolist(), strict=True)),
        },
        "unusable": {
            "looked_at": stages.images + len(stages.unusable),
            "found": len(stages.unusable),
            "images": [{"key": bad.key, "reason": bad.reason} for bad in stages.unusable],
        },
        "pixels": _pixels_as_json(stages.pixels, inputs),
        "one_process": {
            "images": stages.images,
            "images_per_s": _rounded(stages.images_per_s),
            "milliseconds": {name: _rounded(1e3 * s) for name, s in stages.seconds.items()},
            "shares": {name: _rounded(share) for name, share in stages.shares.items()},
        },
        "pipeline": pipeline
        and {
            "images_per_s": _rounded(pipeline.images_per_s),
            "workers": pipeline.workers,
            "cores": pipeline.cores,
            "batch_size": pipeline.batch_size,
            "images": pipeline.images,
        },
        "run": found.run
        and {
            "workdir": found.run.workdir,
            "images_per_s": _rounded(found.run.images_per_s),
            "input_wait": _rounded(found.run.input_wait),
        },
        "remarks": remarks(found),
        "files": found.files,
    }


def _pixels_as_json(pixels: PixelStatistics | None, inputs: Inputs) -> dict[str, Any] | None:
    if pixels is None:
        return None
    return {
        "channels": list(CHANNELS),
        "images": pixels.images,
        "mean": _list(pixels.mean),
        "spread": _list(pixels.spread),
        "config_mean": _list(inputs.mean),
        "config_std": _list(inputs.std),
        "normalised_mean": _list(pixels.normalised_mean),
        "normalised_spread": _list(pixels.normalised_spread),
        "distance_from_config": _rounded(pixels.distance),
    }


def _list(values) -> list[float]:
    return [_rounded(value) for value in np.asarray(values, float)]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
