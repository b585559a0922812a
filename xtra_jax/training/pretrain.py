"""The pretraining job: from a config and a working directory to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from xtra_jax.config import model_spec, total_steps
from xtra_jax.data.bad_images import BadImageLimit, BadImages
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError
from xtra_jax.model.flops import train_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import abstract_params
from xtra_jax.parallel.feed import Feed
from xtra_jax.parallel.mesh import (
    batch_shards,
    check_batch,
    make_mesh,
    num_batch_shards,
    put_batch,
)
from xtra_jax.parallel.overview import as_size, overview, totals
from xtra_jax.parallel.peaks import peak_flops
from xtra_jax.parallel.sharding import left_whole, replicated
from xtra_jax.training.agreement import check_same_run_everywhere
from xtra_jax.training.attention_choice import attention_by_tower, described_attention
from xtra_jax.training.checkpoint import (
    Checkpointer,
    checkpoint_directory,
    restore_params,
    write_config,
)
from xtra_jax.training.compilation import compilation_cache_at, compile_with_notes
from xtra_jax.training.loop import Evaluation, Meter, train
from xtra_jax.training.profile import StepProfile
from xtra_jax.training.progress import Progress
from xtra_jax.training.recipe import (
    evaluation_transform,
    execution_of,
    make_optimizer,
    make_schedule,
    objective_of,
    open_eval_source,
    open_training_source,
    orders_of,
    training_transform,
)
from xtra_jax.training.same_run import check_same_data, check_same_run, data_position
from xtra_jax.training.step import TrainState, init_state, make_eval_step
from xtra_jax.training.stopping import Stop
from xtra_jax.training.telemetry import MetricWriter
from xtra_jax.training.train_program import abstract_state, lower_train_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        state: as it is saved.
        step: the last that was taken.
        validation: the last metrics of the held-out images.
        stopped_by: what ended the run before its last step; "" when it is complete.
    """

    state: TrainState
    step: int
    validation: dict[str, float]
    stopped_by: str = ""

    def stopped(self) -> str:
        """What to tell the user of a run that was stopped."""
        return (
            f"stopped at step {self.step} by {self.stopped_by}; saved: the same command continues"
        )


def pretrain(
    config: ConfigDict,
    workdir: str,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
    signals: Callable[..., Mapping[str, Evaluation]] | None = None,
    show_parameters: bool = True,
) -> Outcome:
    """Trains until the config's last step, from the working directory's newest checkpoint if any.

    Args:
        stop: what may end it earlier, with a checkpoint; signals of the system do where it is
            active.
        signals: makes of config, spec and mesh what else is measured on the way, by its name:
            `xtra_jax.probing.signals.make_signals`.
        show_parameters: begin with the table of all parameters and their shardings.

    Raises:
        UserError: config, data, mesh and working directory don't fit together; what was saved
            before is as it was.
        RunFailed: the loss or the gradient norm stopped being finite, or too many images are
            broken.
    """
    spec = model_spec(config)
    mesh = make_mesh(dict(config.mesh))
    check_batch(config.batch_size, mesh, config.accumulate)
    attention = described_attention(attention_by_tower(config, spec, mesh))
    source = open_training_source(config)
    check_same_run_everywhere(config, len(source), source.digest())
    evaluate = make_evaluation(config, spec, mesh)
    if config.signals.every and signals is None:
        raise UserError(
            f"signals.every={config.signals.every}, and nobody measures them: call pretrain with "
            "signals=xtra_jax.probing.signals.make_signals"
        )
    measured = signals(config, spec, mesh) if signals is not None else {}
    steps = total_steps(config, len(source))
    schedule = make_schedule(config, steps)
    optimizer = make_optimizer(config, schedule)
    if config.profile_at >= steps:
        raise UserError(f"profile_at={config.profile_at} is not below the {steps} steps of the run")
    flops = train_flops(
        spec,
        drop_last_block=config.model.drop_last_block,
        shard_size=shard_size(config, mesh),
    )
    main = jax.process_index() == 0
    progress = progress or Progress(steps, active=main)
    stop = stop or Stop()
    with (
        progress,
        compilation_cache_at(config.compilation_cache, progress.note) as keep_compiled,
        Checkpointer(
            checkpoint_directory(workdir),
            save_every=config.save_every,
            keep=config.keep_checkpoints,
        ) as checkpointer,
    ):
        stop.tell_of(checkpointer.latest_step)
        state = start(config, spec, optimizer, mesh, source, checkpointer, progress)
        step = int(state.step)
        progress.note(f"{describe(spec, mesh, config, steps)}; {attention}")
        if show_parameters:
            progress.note(placed(state))
        if step >= steps:
            progress.note(f"this run is complete: it has taken {step} of {steps} steps")
            return Outcome(state, step, evaluate(state.params))

        if main:
            write_config(workdir, config.to_dict())
        lowered = lower_train_step(config, spec, optimizer, schedule, state, mesh)
        train_step = compile_with_notes(lowered, "the train step", progress.note)
        if kept := keep_compiled():
            progress.note(f"kept it for the next start in {kept}")
        validation: dict[str, float] = {}

        def validate(params) -> dict[str, float]:
            validation.update(evaluate(params))
            return validation

        bad_images = BadImages(bad_images_file(workdir))
        with (
            contextlib.closing(
                on_devices(
                    training_batches(config, spec, source, mesh, step, bad_images=bad_images), mesh
                )
            ) as batches,
            MetricWriter(workdir, step=step, active=main) as writer,
            StepProfile(workdir, config.profile_at, progress.note, active=main) as profile,
        ):
            state, step = train(
                state,
                batches,
                train_step,
                first_step=step,
                steps=steps,
                checkpointer=checkpointer,
                saved_with=lambda step: {
                    "position": data_position(config, step, source),
                    "config": config.to_dict(),
                },
                evaluations={"validation": Evaluation(config.eval_every, validate), **measured},
                meter=Meter(
                    config.batch_size,
                    flops,
                    total_peak_flops(mesh),
                    BadImageLimit.of(
                        source, config.batch_size, config.data.bad_fraction, bad_images
                    ),
                ),
                writer=writer,
                progress=progress,
                stop=stop,
                profile=profile,
                log_every=config.log_every,
            )
    return Outcome(state, step, validation, stop.reason if step < steps else "")


def start(
    config: ConfigDict,
    spec: XTRASpec,
    optimizer,
    mesh,
    source: Source,
    checkpointer: Checkpointer,
    progress: Progress,
) -> TrainState:
    """The state of a run on its mesh: continued where there is a checkpoint, or fresh."""
    targets = abstract_state(config, spec, optimizer, mesh)
    if checkpointer.latest_step() is None:
        return fresh_state(config, spec, optimizer, targets)
    changes = check_same_run(config, checkpointer.read_config(), checkpointer.directory.parent)
    state, position, _ = checkpointer.restore(targets)
    now = data_position(config, int(state.step), source)
    check_same_data(config, position, now, checkpointer.directory.parent)
    changed = f", with {'; '.join(changes)}" if changes else ""
    progress.note(f"continuing from step {int(state.step)} of {checkpointer.directory}{changed}")
    return state


def fresh_state(config: ConfigDict, spec: XTRASpec, optimizer, targets: TrainState) -> TrainState:
    """The state of step 0, made in its place: no device ever holds more than its share."""

    def initial():
        return init_state(spec, optimizer, jax.random.key(config.seed))

    placement = jax.tree.map(lambda leaf: leaf.sharding, targets)
    state = jax.jit(initial, out_shardings=placement)()
    if config.init_from:
        state.params = None  # frees the memory that the others are read into
        state.params = restore_params(config.init_from, targets.params)
    return state


def training_batches(
    config: ConfigDict,
    spec: XTRASpec,
    source: Source,
    mesh,
    first_step: int,
    *,
    bad_images: BadImages | None = None,
) -> Iterator[dict]:
    """This process's share of every batch from `first_step` on."""
    return train_batches(
        source,
        training_transform(config, spec.grid.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first_step,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        shards=batch_shards(mesh),
        num_shards=num_batch_shards(mesh),
        bad_images=bad_images,
    )


def on_devices(batches: Iterator[dict], mesh) -> Feed:
    """What the steps take of each batch, placed on the mesh ahead of time; to be closed."""
    taken = ("image", "weight", "box")
    return Feed(
        batches,
        lambda batch: put_batch({name: batch[name] for name in taken if name in batch}, mesh),
    )


def bad_images_file(workdir: str) -> str:
    """Where a process lists the images that it could not use."""
    process = jax.process_index()
    return f"{workdir}/bad_images{f'-{process}' if process else ''}.txt"


def make_evaluation(config: ConfigDict, spec: XTRASpec, mesh):
    """Builds the validation: parameters to the mean loss over every held-out image, each once.

    Where the config names no held-out images there is nothing to measure.
    """
    source = open_eval_source(config)
    if source is None:
        return lambda params: {}
    step = jax.jit(
        make_eval_step(
            spec, objective_of(config), execution_of(config, mesh), orders=orders_of(config, spec)
        ),
        out_shardings=replicated(mesh),
    )
    transform = evaluation_transform(config, spec.grid.image_size)
    bad_images = BadImages()  # of all evaluations, so that each is named once

    def evaluate(params) -> dict[str, float]:
        batches = eval_batches(
            source,
            transform,
            batch_size=config.batch_size // config.accumulate,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            shards=batch_shards(mesh),
            num_shards=num_batch_shards(mesh),
            bad_images=bad_images,
        )
        sums = []
        with contextlib.closing(on_devices(batches, mesh)) as placed:
            for batch in placed:
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


def shard_size(config: ConfigDict, mesh) -> int:
    """Images that a device, or a group of them along mesh.tensor, computes on at a time."""
    return config.batch_size // (config.accumulate * num_batch_shards(mesh))


def total_peak_flops(mesh) -> float | None:
    one = peak_flops(mesh.devices.flat[0])
    return one * mesh.devices.size if one else None


def placed(state: TrainState) -> str:
    """A table of the parameters on their devices, and the bytes of the whole state."""
    whole, held = totals(state)
    lines = [
        overview(state.params),
        f"with the optimizer's state {as_size(whole)}, of which a device holds {as_size(held)}",
    ]
    mesh = state.step.sharding.mesh
    for axis, names in left_whole(state.params, mesh).items():
        lines.append(f"mesh.{axis}={mesh.shape[axis]} does not divide {', '.join(names)}")
    return "\n".join(lines)


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
