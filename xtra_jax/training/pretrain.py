"""The pretraining job: from a config and a working directory to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from xtra_jax.config import config_diff, from_dict, model_spec, total_steps
from xtra_jax.data.pipeline import eval_batches, limit_bad_images, train_batches
from xtra_jax.data.sources import Source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import UserError
from xtra_jax.model.flops import train_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import abstract_params
from xtra_jax.parallel.mesh import BATCH, check_batch, make_mesh, put_batch
from xtra_jax.parallel.peaks import peak_flops
from xtra_jax.parallel.sharding import replicated, shardings
from xtra_jax.training.checkpoint import (
    Checkpointer,
    checkpoint_directory,
    restore_params,
    write_config,
)
from xtra_jax.training.loop import Meter, train
from xtra_jax.training.progress import Progress
from xtra_jax.training.recipe import (
    execution_of,
    make_optimizer,
    make_schedule,
    objective_of,
    open_eval_source,
    open_training_source,
    orders_of,
)
from xtra_jax.training.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
)
from xtra_jax.training.telemetry import MetricWriter

# What decides which examples a step sees and what the model is: a run can't change it midway.
_FIXED = (
    "seed",
    "batch_size",
    "model.",
    "predictor.",
    "head.",
    "loss.",
    "data.dataset",
    "data.train_split",
)
# How the same numbers are computed may change.
_FREE = ("model.attention", "model.scan_layers", "model.remat", "model.drop_last_block")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: its state, the step it stopped at, and its last validation."""

    state: TrainState
    step: int
    validation: dict[str, float]


def pretrain(config: ConfigDict, workdir: str, *, progress: Progress | None = None) -> Outcome:
    """Trains until the config's last step, from the working directory's newest checkpoint if any.

    Raises:
        UserError: config, data, mesh and working directory don't fit together; what was saved
            before is as it was.
        RunFailed: the loss or the gradient norm stopped being finite, or too many images are
            broken.
    """
    spec = model_spec(config)
    mesh = make_mesh(dict(config.mesh))
    check_batch(config.batch_size, mesh, config.accumulate)
    check_attention(config, mesh)
    source = open_training_source(config)
    evaluate = make_evaluation(config, spec, mesh)
    steps = total_steps(config, len(source))
    schedule = make_schedule(config, steps)
    optimizer = make_optimizer(config, schedule)
    main = jax.process_index() == 0
    progress = progress or Progress(steps, active=main)
    with (
        progress,
        Checkpointer(
            checkpoint_directory(workdir),
            save_every=config.save_every,
            keep=config.keep_checkpoints,
        ) as checkpointer,
    ):
        placement, state = start(config, spec, optimizer, mesh, len(source), checkpointer, progress)
        step = int(state.step)
        progress.note(describe(spec, mesh, config, steps))
        if step >= steps:
            progress.note(f"this run is complete: it has taken {step} of {steps} steps")
            return Outcome(state, step, evaluate(state.params))

        if main:
            write_config(workdir, config.to_dict())
        begin = time.monotonic()
        train_step = compile_train_step(config, spec, optimizer, schedule, state, placement, mesh)
        progress.note(f"compiled the train step in {time.monotonic() - begin:.0f} s")
        validation: dict[str, float] = {}

        def validate(params) -> dict[str, float]:
            validation.update(evaluate(params))
            return validation

        with (
            contextlib.closing(training_batches(config, spec, source, step)) as batches,
            MetricWriter(workdir, step=step, active=main) as writer,
        ):
            state, step = train(
                state,
                on_devices(batches, mesh),
                train_step,
                first_step=step,
                steps=steps,
                checkpointer=checkpointer,
                saved_with=lambda step: {
                    "position": data_position(config, step, len(source)),
                    "config": config.to_dict(),
                },
                evaluations={"validation": validate},
                meter=Meter(
                    config.batch_size,
                    train_flops(spec, drop_last_block=config.model.drop_last_block),
                    total_peak_flops(mesh),
                ),
                writer=writer,
                progress=progress,
                log_every=config.log_every,
                eval_every=config.eval_every,
            )
    return Outcome(state, step, validation)


def start(
    config: ConfigDict,
    spec: XTRASpec,
    optimizer,
    mesh,
    examples: int,
    checkpointer: Checkpointer,
    progress: Progress,
) -> tuple[TrainState, TrainState]:
    """The shardings of a run's state, and the state: continued where there is one, or fresh."""
    abstract = jax.eval_shape(lambda: init_state(spec, optimizer, jax.random.key(config.seed)))
    placement = shardings(abstract, mesh)
    if checkpointer.latest_step() is None:
        return placement, fresh_state(config, spec, optimizer, placement)
    changes = check_same_run(config, checkpointer.read_config(), checkpointer.directory.parent)
    targets = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        placement,
    )
    state, position, _ = checkpointer.restore(targets)
    if position["examples"] != examples:
        raise UserError(
            f"the run in {checkpointer.directory.parent} trains on {position['examples']} images, "
            f"and {config.data.dataset} now holds {examples}: the order of its examples would "
            "change, so restore the data set or give another --workdir"
        )
    changed = f", with {'; '.join(changes)}" if changes else ""
    progress.note(f"continuing from step {int(state.step)} of {checkpointer.directory}{changed}")
    return placement, state


def fresh_state(config: ConfigDict, spec: XTRASpec, optimizer, placement) -> TrainState:
    """The state of step 0, made in its place: no device ever holds more than its share."""

    def initial():
        return init_state(spec, optimizer, jax.random.key(config.seed))

    state = jax.jit(initial, out_shardings=placement)()
    if config.init_from:
        targets = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            state.params,
        )
        state.params = restore_params(config.init_from, targets)
    return state


def check_attention(config: ConfigDict, mesh) -> None:
    """UserError where the attention asked for doesn't run on these devices."""
    platform = mesh.devices.flat[0].platform
    if config.model.attention == "cudnn" and platform not in ("gpu", "cuda"):
        raise UserError(
            f"model.attention=cudnn needs NVIDIA GPUs, and these devices are {platform}: use xla"
        )


def check_same_run(config: ConfigDict, saved: dict, workdir) -> list[str]:
    """UserError where the config would train another model, or on other batches, than the run.

    Returns:
        The other differences, in words.
    """
    changes = []
    for key, (theirs, ours) in config_diff(from_dict(saved), config).items():
        folder = key == "data.data_dir" and config.data.dataset == "folder"
        if folder or (key.startswith(_FIXED) and key not in _FREE):
            raise UserError(
                f"{workdir} holds a run with {key}={theirs}, and the config now says {ours}: give "
                "another --workdir, or the config that the run began with"
            )
        changes.append(f"{key} {theirs} -> {ours}")
    return changes


def compile_train_step(
    config: ConfigDict, spec: XTRASpec, optimizer, schedule, state: TrainState, placement, mesh
) -> Callable:
    """The train step, compiled before the first batch is there."""
    step = make_train_step(
        spec,
        optimizer,
        objective_of(config),
        execution_of(config),
        schedule=schedule,
        seed=config.seed,
        accumulate=config.accumulate,
        orders=orders_of(config, spec),
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placement, replicated(mesh)))
    return jitted.lower(state, abstract_batch(config, mesh)).compile()


def abstract_batch(config: ConfigDict, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the train step takes beside the state."""
    sharding = jax.sharding.NamedSharding(mesh, BATCH)
    size, side = config.batch_size, config.model.image_size
    return {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8, sharding=sharding),
        "weight": jax.ShapeDtypeStruct((size,), jnp.float32, sharding=sharding),
    }


def training_batches(
    config: ConfigDict, spec: XTRASpec, source: Source, first_step: int
) -> Iterator[dict]:
    """This process's share of every batch from `first_step` on."""
    data = config.data
    transform = PretrainTransform(
        spec.grid.image_size, tuple(data.crop_scale), tuple(data.crop_ratio), data.flip
    )
    batches = train_batches(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first_step,
        num_workers=data.num_workers,
        prefetch=data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return limit_bad_images(batches, len(source), data.bad_fraction)


def on_devices(batches: Iterator[dict], mesh) -> Iterator[dict]:
    """Images and weights of each batch, placed on the mesh."""
    for batch in batches:
        yield put_batch({"image": batch["image"], "weight": batch["weight"]}, mesh)


def make_evaluation(config: ConfigDict, spec: XTRASpec, mesh):
    """Builds the validation: parameters to the mean loss over every held-out image, each once.

    Where the config names no held-out images there is nothing to measure.
    """
    source = open_eval_source(config)
    if source is None:
        return lambda params: {}
    step = jax.jit(
        make_eval_step(
            spec, objective_of(config), execution_of(config), orders=orders_of(config, spec)
        ),
        out_shardings=replicated(mesh),
    )
    transform = EvalTransform(config.data.eval_resize, spec.grid.image_size)

    def evaluate(params) -> dict[str, float]:
        batches = eval_batches(
            source,
            transform,
            batch_size=config.batch_size // config.accumulate,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sums = []
        for batch in on_devices(batches, mesh):
            sums.append(step(params, batch))
            jax.block_until_ready(sums[-2:-1])  # never more than one batch ahead of the device
        total, images = (sum(map(float, parts)) for parts in zip(*sums, strict=True))
        if not images:
            raise UserError(
                f"none of the {len(source)} images of data.eval_split={config.data.eval_split} "
                "can be read"
            )
        return {"loss": total / images, "images": images}

    return evaluate


def data_position(config: ConfigDict, step: int, examples: int) -> dict[str, int]:
    """Where the data stream stands after a step: what fixes its order, and its next sample."""
    return {
        "examples": examples,
        "seed": config.seed,
        "next_sample": step * config.batch_size,
    }


def total_peak_flops(mesh) -> float | None:
    one = peak_flops(mesh.devices.flat[0])
    return one * mesh.devices.size if one else None


def describe(spec: XTRASpec, mesh, config: ConfigDict, steps: int) -> str:
    """A line on what is about to be trained, on what, for how long."""
    params = parameter_overview.count_parameters(abstract_params(spec))
    grid = spec.grid
    axes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    return (
        f"XTRA with {params:,} parameters on images of {grid.image_size} px: {grid.num_tokens} "
        f"tokens in {grid.num_blocks} blocks; {steps} steps of {config.batch_size} images on "
        f"{mesh.devices.size} {mesh.devices.flat[0].device_kind} ({axes})"
    )
