"""The probing job: from a config and a checkpoint to accuracies in a file."""

from __future__ import annotations

import time
from functools import partial

import jax
from ml_collections import ConfigDict

from xtra_jax.config import model_spec, total_steps, warmup_steps, with_encoder_input
from xtra_jax.data.bad_images import BadImageLimit, BadImages
from xtra_jax.data.erasing import random_erasing
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.model.patches import normalise_patches, patchify, unpatchify
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import (
    batch_shards,
    check_batch,
    make_mesh,
    num_batch_shards,
    put_batch,
)
from xtra_jax.parallel.sharding import replicated, shardings
from xtra_jax.probing.features import LINEAR, FeatureSpec, encoder_features
from xtra_jax.probing.probe import Scores, train_probe
from xtra_jax.probing.results import History, best_head, check_writable, write_results
from xtra_jax.probing.sweep import HeadGroup, Recipe, Setting
from xtra_jax.training.progress import Progress
from xtra_jax.training.recipe import (
    evaluation_transform,
    open_eval_source,
    open_training_source,
    training_transform,
)


def probe(
    config: ConfigDict, out: str = "", *, encoder_config: str = "", progress: Progress | None = None
) -> list[History]:
    """Probes the checkpoint that the config names, writes the accuracies and returns them.

    Args:
        out: the JSON file to write; by default `probes/<name>.json` in the run's working directory.
        encoder_config: the pretraining config of a file of weights, where they don't tell enough.

    Raises:
        UserError: config, checkpoint, data and mesh don't fit together.
    """
    if not config.checkpoint:
        raise UserError(
            "checkpoint is empty: name a run's --workdir, one of its checkpoints, or a file of "
            "weights"
        )
    opened = open_checkpoint(config.checkpoint, config=encoder_config)
    if not out and opened.workdir is None:
        raise UserError(
            f"{opened.path} belongs to no run's working directory: say where to write with --out"
        )
    return probe_params(
        config,
        opened.params,
        opened.config,
        out or str(opened.workdir / "probes" / f"{config.name}.json"),
        checkpoint=str(opened.path),
        progress=progress,
    )


def probe_params(
    config: ConfigDict,
    params: dict,
    pretraining: ConfigDict,
    out: str,
    *,
    checkpoint: str,
    progress: Progress | None = None,
) -> list[History]:
    """Probes an encoder whose parameters are at hand.

    Args:
        params: of the whole pretraining model; only the encoder's are used.
        pretraining: the config that describes that model.
        out: the JSON file to write.
        checkpoint: what the file says was probed.

    Returns:
        One history per head: of each kind, one for each of the config's rates.
    """
    config = with_encoder_input(config, pretraining)
    spec = model_spec(pretraining)
    mesh = make_mesh(dict(config.mesh))
    check_batch(config.batch_size, mesh)
    groups = head_groups(config, spec)
    data = config.data
    if not data.eval_split:
        raise UserError("data.eval_split is empty: a probe needs images to tell its accuracy on")
    train_source, eval_source = open_training_source(config), open_eval_source(config)
    _check_labels(train_source, data.dataset, data.train_split, data.num_classes)
    _check_labels(eval_source, data.eval_dataset or data.dataset, data.eval_split, data.num_classes)
    recipe = make_recipe(config, len(train_source))
    if jax.process_index() == 0:
        check_writable(out)
    progress = progress or Progress(recipe.steps, active=jax.process_index() == 0)

    share = dict(
        batch_size=config.batch_size,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        shards=batch_shards(mesh),
        num_shards=num_batch_shards(mesh),
    )
    process = jax.process_index()
    bad_images = BadImages(f"{out}.bad_images{f'-{process}' if process else ''}.txt")
    batches = train_batches(
        train_source,
        training_transform(config, config.data.image_size),
        seed=config.seed,
        bad_images=bad_images,
        **share,
    )
    eval_transform = evaluation_transform(config, config.data.image_size)
    bad_eval_images = BadImages()  # of all evaluations, so that each is named once
    encoder = jax.device_put(params["encoder"], shardings(params["encoder"], mesh))
    features = partial(_features, config=config, pretraining=pretraining, groups=tuple(groups))

    unreadable = 0
    begin = time.monotonic()

    def on_step(step: int, losses) -> None:
        if step % config.log_every == 0:
            rate = step * config.batch_size / (time.monotonic() - begin)
            progress.update(step, images_per_s=rate)

    def on_evaluation(step: int, scores: Scores) -> None:
        nonlocal unreadable
        unreadable = scores.unreadable
        best = {kind: max(right) / scores.total for kind, right in scores.correct.items()}
        found = "  ".join(f"{kind} {accuracy:.1%}" for kind, accuracy in best.items())
        progress.note(f"step {step}/{recipe.steps}  best accuracy  {found}")

    with progress:
        _, histories = train_probe(
            groups,
            jax.tree_util.Partial(features, encoder),
            batches,
            lambda: eval_batches(eval_source, eval_transform, bad_images=bad_eval_images, **share),
            recipe,
            seed=config.seed,
            put=lambda batch: put_batch(batch, mesh),
            sharding=replicated(mesh),
            bad_images=BadImageLimit.of(
                train_source, config.batch_size, config.data.bad_fraction, bad_images
            ),
            on_step=on_step,
            on_evaluation=on_evaluation,
        )
    if jax.process_index() == 0:
        write_results(
            out,
            histories,
            config=config.to_dict(),
            checkpoint=checkpoint,
            unreadable_images=unreadable,
        )
    return histories


def head_groups(config: ConfigDict, spec: XTRASpec) -> dict[str, HeadGroup]:
    """The heads to train, by their kind."""
    kinds = ("attentive", "linear") if config.kind == "both" else (config.kind,)
    settings = tuple(Setting(rate, config.optim.weight_decay) for rate in config.rates)
    return {
        kind: HeadGroup(
            kind,
            spec.encoder.width,
            config.data.num_classes,
            settings,
            num_heads=config.probe.num_heads,
            num_queries=config.probe.num_queries,
        )
        for kind in kinds
    }


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


def feature_spec(kind: str, config: ConfigDict) -> FeatureSpec:
    """Linear heads see the last layer's mean token, attentive ones the last layers' tokens."""
    return LINEAR if kind == "linear" else FeatureSpec(config.probe.last_layers)


def _features(
    encoder_params: dict, images, key, *, config: ConfigDict, pretraining: ConfigDict, groups
) -> dict:
    """uint8 images to the features of each kind of head; erased where a key is given."""
    spec, data = model_spec(pretraining), config.data
    grid = spec.grid.resized(data.image_size)
    patches = normalise_patches(patchify(images, grid), data.mean, data.std)
    if key is not None and data.erasing:
        pixels = unpatchify(patches, grid)
        patches = patchify(random_erasing(key, pixels, probability=data.erasing), grid)
    encoder = bind_encoder(spec, encoder_params)
    return {
        kind: encoder_features(encoder, patches, feature_spec(kind, config), grid=grid)
        for kind in groups
    }


def _check_labels(source: Source, dataset: str, split: str, num_classes: int) -> None:
    if source.num_classes != num_classes:
        has = "no labels" if source.num_classes is None else f"{source.num_classes} classes"
        raise UserError(
            f"{dataset} ({split}) has {has}, and data.num_classes={num_classes}: a probe needs "
            "labelled images of as many classes as it is told"
        )


def summary(histories: list[History]) -> str:
    """A line per kind of head: its best rate and accuracy."""
    lines = []
    for kind in dict.fromkeys(history.group for history in histories):
        best = best_head(histories, kind)
        last = best.last
        lines.append(
            f"{kind:10} {last.accuracy:.2%} ({last.correct} of {last.total}) at rate "
            f"{best.setting.rate:g}, chosen on the reported split"
        )
    return "\n".join(lines)
