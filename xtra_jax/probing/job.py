"""The probing job: from a config and a checkpoint to a folder of results."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import jax
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import model_spec, total_steps, warmup_steps, with_encoder_input
from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import OpenCheckpoint, open_checkpoint, weights_sha256
from xtra_jax.parallel.mesh import check_batch, make_mesh, put_batch
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.grid import head_groups
from xtra_jax.probing.inputs import Inputs, features_of
from xtra_jax.probing.probe import Trained, train_probe
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.results import Provenance, Results, write_results
from xtra_jax.probing.saves import Saves, alone_in, clean_up, find_complete
from xtra_jax.probing.scores import Scores
from xtra_jax.probing.selection import Images, open_images
from xtra_jax.probing.table import write_tables
from xtra_jax.training.agreement import check_same_run_everywhere
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory
from xtra_jax.training.progress import Progress
from xtra_jax.training.stopping import Stop
from xtra_jax.training.storage import absolute, is_local


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What is probed.

    Attributes:
        params: of the encoder.
        pretraining: the config that describes it.
        name: what the results call it, without a path of this machine.
        sha256: of its weights.
        kept: the folder that its features are kept in; None for that of each probe's results.
    """

    params: dict
    pretraining: ConfigDict
    name: str
    sha256: str
    kept: epath.Path | None = None

    @classmethod
    def of(cls, params: dict, pretraining: ConfigDict, name: str) -> Encoder:
        """That of a pretraining model's parameters."""
        digest = weights_sha256({"encoder": params["encoder"]})
        return cls(params["encoder"], pretraining, name, digest)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a probe came to.

    Attributes:
        folder: where it is kept.
        results: None where it was stopped.
        step: the last that was taken.
        stopped_by: what ended it before its last step; "" when it is complete.
        asked: how often it has asked whether to stop.
    """

    folder: epath.Path
    results: Results | None
    step: int
    stopped_by: str = ""
    asked: int = 0

    def stopped(self) -> str:
        """What to tell the user of a probe that was stopped."""
        saved = "saved" if self.step else "nothing of it was lost"
        return (
            f"stopped at step {self.step} of {self.folder} by {self.stopped_by}; {saved}: the same "
            "command continues"
        )


def probe(
    config: ConfigDict,
    out: str = "",
    *,
    encoder_config: str = "",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Probes the checkpoint that the config names; see `probe_encoder`.

    Args:
        out: the folder to write; by default `probes/<name>` in the run's working directory.
        encoder_config: the pretraining config of a file of weights, where they don't tell enough.
    """
    opened = open_probed(config, encoder_config)
    folder = folder_of(config, opened, out)
    encoder = encoder_of(opened, folder)
    return probe_encoder(config, encoder, folder, progress=progress, stop=stop)


def open_probed(config: ConfigDict, encoder_config: str = "") -> OpenCheckpoint:
    """The checkpoint that a config names.

    Raises:
        UserError: it names none, or there is no such one.
    """
    if not config.checkpoint:
        raise UserError(
            "checkpoint is empty: name a run's --workdir, one of its checkpoints, or a file of "
            "weights"
        )
    return open_checkpoint(config.checkpoint, config=encoder_config)


def encoder_of(opened: OpenCheckpoint, folder: epath.Path) -> Encoder:
    """What a checkpoint holds; its features are kept with its run, for all probes of it.

    Args:
        folder: of the probe or the study, where they are kept if there is no local run.
    """
    run = opened.workdir
    encoder = Encoder.of(opened.params, opened.config, opened.name)
    return dataclasses.replace(encoder, kept=run if run and is_local(run) else folder)


def folder_of(config: ConfigDict, opened: OpenCheckpoint, out: str = "") -> epath.Path:
    """The folder of a probe or a study.

    Raises:
        UserError: none is given, and the checkpoint belongs to no run.
    """
    if not out and opened.workdir is None:
        raise UserError(
            f"{opened.path} belongs to no run's working directory: say where to write with --out"
        )
    return absolute(out) if out else opened.workdir / "probes" / config.name


def probe_encoder(
    config: ConfigDict,
    encoder: Encoder,
    folder: epath.Path,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
    asked: int = 0,
) -> Outcome:
    """Trains heads on an encoder, from the folder's newest checkpoint if any, and evaluates them.

    What is complete already is not done again.

    Args:
        folder: for the results, see `write_results`, and until they are there for checkpoints.
        stop: what may end it earlier, with a checkpoint; signals do where it is active.
        asked: how often probes before this one have asked the same `stop`.

    Raises:
        UserError: config, encoder, data and mesh don't fit together, or the folder holds another
            probe, or another command is at work in it.
        RunFailed: too many images are broken.
    """
    config = with_encoder_input(config, encoder.pretraining)
    complete = find_complete(folder, config, encoder.sha256)
    main = jax.process_index() == 0
    if complete is not None:
        progress = progress or Progress(0, active=main)
        progress.note(f"this probe is complete: its results are in {folder}")
        clean_up(folder)
        return Outcome(folder, complete, 0)
    mesh = make_mesh(dict(config.mesh))
    check_batch(config.batch_size, mesh)
    groups = head_groups(config, model_spec(encoder.pretraining))
    images = open_images(config)
    recipe = make_recipe(config, len(images.train))
    check_same_run_everywhere(config, len(images.train), images.digest())
    progress = progress or Progress(recipe.steps, active=main)
    stop = stop or Stop()
    specs = tuple(dict.fromkeys(group.features for group in groups.values()))
    frozen = FrozenEncoder.of(encoder.params, encoder.sha256, config, encoder.pretraining, mesh)
    features = jax.tree_util.Partial(
        partial(features_of, config=config, model=frozen.spec, specs=specs), frozen.params
    )
    with alone_in(folder):
        with (
            progress,
            Checkpointer(
                checkpoint_directory(folder),
                save_every=config.save_every,
                keep=config.keep_checkpoints,
            ) as checkpointer,
        ):
            stop.tell_of(checkpointer.latest_step)
            records = {"training": images.train.digest(), "reported": images.test.digest()}
            saves = Saves(checkpointer, config, encoder=encoder.sha256, records=records)
            if saves.first_step:
                progress.note(
                    f"continuing from step {saves.first_step} of {checkpointer.directory}"
                )
            progress.note(describe(config, groups, recipe, images))
            inputs = Inputs(config, images, frozen, specs, folder, encoder.kept or folder)
            trained = train_probe(
                groups,
                features,
                inputs.training,
                lambda: inputs.evaluation(images.chosen_on),
                recipe,
                test_batches=(
                    None if config.select == "test" else lambda: inputs.evaluation(images.test)
                ),
                seed=config.seed,
                put=lambda batch: put_batch(batch, mesh),
                mesh=mesh,
                heads_at_once=config.probe.heads_at_once,
                saves=saves,
                stopped=lambda step: stop.reached(asked + step),
                bad_images=inputs.limit,
                **_tell(config, recipe, progress),
            )
        asked += recipe.steps + 1
        if trained.test is None:
            return Outcome(folder, None, trained.step, stop.reason, asked)
        results = _results(config, encoder, trained, saves.seconds)
        if main:
            write_tables(folder, {config.name: results})
            write_results(folder, *results)
        clean_up(folder)
        return Outcome(folder, results, trained.step, asked=asked)


def make_recipe(config: ConfigDict, num_examples: int) -> Recipe:
    """Length, schedule and optimizer of a probe over so many training images."""
    steps, optim = total_steps(config, num_examples), config.optim
    return Recipe(
        steps=steps,
        steps_per_epoch=num_examples / config.batch_size,
        warmup_steps=warmup_steps(config, steps),
        end_rate=optim.end_lr,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        clip_norm=optim.clip_norm,
        label_smoothing=config.label_smoothing,
        eval_every=config.eval_every,
    )


def describe(config: ConfigDict, groups: dict, recipe: Recipe, images: Images) -> str:
    """Lines on what is about to be trained, and how the best of it will be chosen."""
    heads = " and ".join(f"{len(group.settings)} {name}" for name, group in groups.items())
    lines = [
        f"heads: {heads}; {recipe.steps} steps of {config.batch_size} of {len(images.train):,} "
        f"images of {config.data.dataset}"
    ]
    if not recipe.warmup_steps:
        lines.append(
            "rates are those that the optimizer really starts at: without a warm-up a published "
            "run is named after ten times its own"
        )
    chosen = f"the {len(images.test):,} images that are reported on, as published"
    if config.select == "heldout":
        chosen = f"{len(images.chosen_on):,} training images that are held out"
    lines.append(f"the best head is chosen on {chosen}")
    return "\n".join(lines)


def _tell(config: ConfigDict, recipe: Recipe, progress: Progress) -> dict:
    """What tells the user of steps and evaluations: arguments of `train_probe`.

    The rate is that of the steps after the first of this run, which waits for compilation and for
    features that are computed once; the time of evaluations does not count.
    """
    first, begin, last = None, 0.0, 0.0

    def on_step(step: int) -> None:
        nonlocal first, begin, last
        last = time.monotonic()
        if first is None:
            first, begin = step, last
        if step % config.log_every == 0:
            images = (step - first) * config.batch_size
            progress.update(step, images_per_s=images / (last - begin) if images else None)

    def on_evaluation(step: int, scores: Scores) -> None:
        nonlocal begin
        begin += time.monotonic() - last
        best = {name: max(right) / scores.total for name, right in scores.correct.items()}
        found = "  ".join(f"{name} {accuracy:.1%}" for name, accuracy in best.items())
        progress.note(f"step {step}/{recipe.steps}  best accuracy  {found}")

    return {"on_step": on_step, "on_evaluation": on_evaluation}


def _results(config: ConfigDict, encoder: Encoder, trained: Trained, seconds: float) -> Results:
    provenance = Provenance(
        checkpoint=encoder.name,
        checkpoint_hash=encoder.sha256,
        config=config.to_dict(),
        pretraining=encoder.pretraining.to_dict(),
        select=config.select,
        unreadable=trained.test.unreadable,
        seconds=seconds,
    )
    return Results(tuple(trained.histories), provenance)
