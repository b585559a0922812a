"""From a config to what it describes: data, objective, order, schedule, optimizer."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xtra_jax.config import warmup_steps
from xtra_jax.data.randaugment import RandAugment
from xtra_jax.data.sources import Source, open_source
from xtra_jax.data.transforms import DeviceResizeTransform, EvalTransform, PretrainTransform
from xtra_jax.model.execution import Execution
from xtra_jax.model.orders import pseudo_random_orders
from xtra_jax.model.variants import XTRASpec
from xtra_jax.parallel.mesh import num_batch_shards
from xtra_jax.parallel.sharding import activation_placement
from xtra_jax.training.attention_choice import attention_on
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.schedule import warmup_cosine
from xtra_jax.training.step import Objective


def open_training_source(config: ConfigDict) -> Source:
    data = config.data
    return open_source(
        data.dataset,
        data.train_split,
        data.data_dir,
        mixture=tuple(data.mixture),
        subset=data.subset,
        seed=config.seed,
    )


def open_eval_source(config: ConfigDict) -> Source | None:
    """The held-out images; None where the config names no split of them."""
    data = config.data
    if not data.eval_split:
        return None
    return open_source(data.eval_dataset or data.dataset, data.eval_split, data.data_dir)


def training_crops(config: ConfigDict, image_size: int) -> PretrainTransform:
    """What training samples of a pretraining or a probe go through on the host.

    Where the device resizes, it is what the device then does as well.
    """
    data = config.data
    return PretrainTransform(
        image_size,
        tuple(data.crop_scale),
        tuple(data.crop_ratio),
        data.flip,
        RandAugment(mean=tuple(data.mean)) if data.get("randaugment") else None,
        "exact" if resizes_on_device(config) else data.resize,
    )


def training_transform(
    config: ConfigDict, image_size: int
) -> PretrainTransform | DeviceResizeTransform:
    """What workers do to a training sample."""
    crops = training_crops(config, image_size)
    return DeviceResizeTransform(crops) if resizes_on_device(config) else crops


def resizes_on_device(config: ConfigDict) -> bool:
    """Whether the train step resizes the crops. A probe's can't: its transform refuses."""
    return config.data.resize == "device" and "probe" not in config


def evaluation_transform(config: ConfigDict, image_size: int) -> EvalTransform:
    return EvalTransform(config.data.eval_resize, image_size)


def execution_of(config: ConfigDict, mesh: Mesh) -> Execution:
    """How the model is computed on a mesh.

    Raises:
        UserError: the mesh's devices don't have the attention asked for.
    """
    model = config.model
    return Execution(
        attention_on(model.attention, mesh),
        model.scan_layers,
        model.remat,
        config.optim.reduce_dtype,
        activation_placement(mesh),
        num_batch_shards(mesh),
        mesh.size,
    )


def objective_of(config: ConfigDict) -> Objective:
    return Objective(
        kind=config.loss.kind,
        norm_pix=config.loss.norm_pix,
        drop_last_block=config.model.drop_last_block,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


def orders_of(config: ConfigDict, spec: XTRASpec) -> np.ndarray | None:
    """The block orders of the pseudo-random ablation, the same for a run's whole life."""
    if config.model.order == "raster":
        return None
    return pseudo_random_orders(spec.grid.num_blocks, config.seed)


def make_schedule(config: ConfigDict, steps: int):
    optim = config.optim
    return warmup_cosine(
        peak=optim.lr,
        start=optim.warmup_lr,
        end=optim.end_lr,
        steps=steps,
        warmup_steps=warmup_steps(config, steps),
    )


def make_optimizer(config: ConfigDict, schedule):
    optim = config.optim
    return adamw(
        schedule,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        mu_dtype=optim.mu_dtype,
    )
