"""From a config, of pretraining or of a probe, to the input that it describes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from xtra_jax.config import load, model_spec, saved_config, with_encoder_input
from xtra_jax.data.device_resize import resize_on_device
from xtra_jax.data.pipeline import Transform
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import UserError
from xtra_jax.model.grid import Grid
from xtra_jax.training.checkpoint import find_checkpoint, read_config
from xtra_jax.training.recipe import (
    evaluation_transform,
    open_eval_source,
    open_training_source,
    resizes_on_device,
    training_crops,
    training_transform,
)

NO_ENCODER = "configs/base.py"

_resize_on_device = jax.jit(resize_on_device, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that decides what a run sees.

    Attributes:
        config: of the run; what a probe takes over from its encoder is filled in.
        train, evaluation: the sources; `evaluation` is None where nothing is held out.
        train_transform: of training samples, as if it was not the device that resizes them.
        grid: how images are cut into tokens and blocks.
        erasing: probability of a rectangle of noise, which the device puts in.
        encoder: whose image size, grid and normalisation a probe is shown with; "" in pretraining.
    """

    config: ConfigDict
    train: Source
    evaluation: Source | None
    train_transform: PretrainTransform
    eval_transform: EvalTransform
    grid: Grid
    erasing: float
    encoder: str

    @property
    def on_device(self) -> bool:
        """Whether the accelerator resizes training samples."""
        return resizes_on_device(self.config)

    @property
    def pipeline_transform(self) -> Transform:
        """What the pipeline itself does to a training sample."""
        return training_transform(self.config, self.grid.image_size)

    def squares(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The images of a training batch, uint8 [batch, size, size, 3], resized if need be."""
        if not self.on_device:
            return np.array(batch["image"])
        return np.asarray(_resize_on_device(batch["image"], batch["box"], self.grid.image_size))

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.config.data.mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.config.data.std)


def open_inputs(config: ConfigDict) -> Inputs:
    """Opens the sources of a config and builds its transforms.

    A probe that names no checkpoint yet is shown as for an encoder of `configs/base.py`.

    Raises:
        UserError: no such data set or checkpoint, or sizes that don't fit together.
    """
    encoder = ""
    if "probe" in config:
        config, pretraining, encoder = _with_encoder(config)
        grid = model_spec(pretraining).grid.resized(config.data.image_size)
    else:
        grid = model_spec(config).grid
    data = config.data
    return Inputs(
        config,
        open_training_source(config),
        open_eval_source(config),
        training_crops(config, grid.image_size),
        evaluation_transform(config, grid.image_size),
        grid,
        data.get("erasing", 0.0),
        encoder,
    )


def _with_encoder(config: ConfigDict) -> tuple[ConfigDict, ConfigDict, str]:
    """A probe's config completed by its encoder's, that one, and where it is from."""
    if config.datasets:
        raise UserError(
            f"datasets={config.datasets} is a study of several data sets: inspect one of them, as "
            f"configs/probe.py:{config.datasets.partition(',')[0]}"
        )
    if config.checkpoint:
        path = find_checkpoint(config.checkpoint)
        pretraining, encoder = saved_config(read_config(path)), str(path)
    else:
        pretraining, encoder = load(NO_ENCODER), NO_ENCODER
    return with_encoder_input(config, pretraining), pretraining, encoder
