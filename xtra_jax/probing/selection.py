"""Which images a probe is trained on, chosen by, and reported on."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from xtra_jax.data.record_index import index_of
from xtra_jax.data.sources import Source
from xtra_jax.data.subsets import Subset
from xtra_jax.errors import UserError
from xtra_jax.training.recipe import open_eval_source, open_training_source

_HOLDING_OUT = 0x401D  # keeps the draw apart from others with the same seed


class Images(NamedTuple):
    """The three sets of a probe.

    Attributes:
        train: what heads are trained on.
        chosen_on: what the best head is chosen on: `test` itself under select=test, as published,
            and a part of the training images under select=heldout, which `train` then lacks.
        test: what the accuracy is reported on.
    """

    train: Source
    chosen_on: Source
    test: Source

    def digest(self) -> str:
        """Tells the images of all three, and their order."""
        return " ".join(source.digest() for source in self)


def open_images(config: ConfigDict) -> Images:
    """Opens what a probe's config names.

    Raises:
        UserError: there is no such data set or split, it has other classes than the config says or
            than the one it is evaluated on, or too few images of each to hold some out.
    """
    data = config.data
    if not data.eval_split:
        raise UserError("data.eval_split is empty: a probe needs images to tell its accuracy on")
    train, test = open_training_source(config), open_eval_source(config)
    _check_labels(train, data.dataset, data.train_split, data.num_classes)
    evaluated = data.eval_dataset or data.dataset
    _check_labels(test, evaluated, data.eval_split, data.num_classes)
    check_same_classes(
        (f"{data.dataset} ({data.train_split})", train), (f"{evaluated} ({data.eval_split})", test)
    )
    if config.select == "test":
        return Images(train, test, test)
    return Images(*hold_out(train, config.heldout_fraction, config.seed), test)


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Parts a labelled source in two: what is left to train on, and what is held out.

    Of each class that share is held out, rounded, but one image at least where there are two, and
    never all. Images without a label, and those that cannot be read, are left to train on. The same
    records and seed give the same parts.

    Args:
        fraction: above 0 and below 1.

    Raises:
        UserError: no class has two images.
    """
    labels = index_of(source).labels
    drawn = np.random.default_rng((seed, _HOLDING_OUT)).permutation(len(source))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    ends = np.searchsorted(labels[by_class], np.arange(source.num_classes + 1))
    held = np.zeros(len(source), bool)
    for start, end in itertools.pairwise(ends):
        size = end - start
        count = min(max(1, round(fraction * size)), max(size - 1, 0))
        held[by_class[start : start + count]] = True
    if not held.any():
        raise UserError(
            f"select=heldout has nothing to hold out: none of the {source.num_classes} classes has "
            "two training images"
        )
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def check_same_classes(one: tuple[str, Source], other: tuple[str, Source]) -> None:
    """UserError where labels mean one thing in one source and another thing in the other.

    Sources without names of their classes pass.

    Args:
        one, other: what to call a source, and the source.
    """
    (name, ours), (other_name, theirs) = (
        (name, tuple(source.class_names)) for name, source in (one, other)
    )
    if not ours or not theirs or ours == theirs:
        return
    label, (a, b) = next(
        (i, pair) for i, pair in enumerate(itertools.zip_longest(ours, theirs)) if len({*pair}) > 1
    )
    raise UserError(
        f"label {label} is {a} in {name} and {b} in {other_name}: both need the same classes in "
        "the same order"
    )


def _check_labels(source: Source, dataset: str, split: str, num_classes: int) -> None:
    if source.num_classes != num_classes:
        has = "no labels" if source.num_classes is None else f"{source.num_classes} classes"
        raise UserError(
            f"{dataset} ({split}) has {has}, and data.num_classes={num_classes}: a probe needs "
            "labelled images of as many classes as it is told"
        )
