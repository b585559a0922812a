"""Few-shot classification of frozen features, by ridge regression in closed form.

A handful of labelled images of each class, one linear map fitted to their one-hot labels by least
squares with a penalty, and the class of the largest output: nothing to train, and seconds for any
set (the few-shot evaluation of ViT, Dosovitskiy et al., arXiv 2010.11929, section 4.1).

Features are standardised by the mean and spread of the shots, and of nothing else, so that the
classifier has seen those images only. Layers differ in the scale of their features, and within one
a few directions are larger than the rest together; standardised, the same penalty fits them all.
The penalty is the width of the features: then the regularised Gram matrix of the shots is
width * (C + I), C their correlations over the features, whatever the width is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SHOTS = (1, 5, 10)  # labelled images per class
SEEDS = 5  # draws of them
_ROWS = 4096  # test images at once


class LinearClassifier(NamedTuple):
    """The class of features x [..., width] is the largest of `x @ kernel + bias`.

    Attributes:
        kernel: float64 [width, classes].
        bias: float64 [classes].
    """

    kernel: np.ndarray
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The class of each row, int [rows]; the lowest of equals."""
        return np.argmax(features.astype(np.float64) @ self.kernel + self.bias, axis=1)


def fit_ridge(
    features: np.ndarray, labels: np.ndarray, num_classes: int, *, penalty: float | None = None
) -> LinearClassifier:
    """Ridge regression of standardised features to one-hot labels, with an intercept.

    It solves the smaller of the two systems of normal equations, of as many unknowns as there are
    images or features, in float64.

    Args:
        features: [images, width].
        labels: int [images], from 0 to `num_classes` - 1. A class may have none.
        penalty: of the squared kernel (of standardised features), above 0; the width by default.
    """
    x = np.asarray(features, np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0  # such a feature says nothing, and stays at 0
    x = (x - mean) / spread
    images, width = x.shape
    penalty = float(width) if penalty is None else penalty
    share = np.bincount(labels, minlength=num_classes) / images  # the mean of the one-hot labels
    if images <= width:
        targets = np.eye(num_classes)[labels] - share
        kernel = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(images), targets)
    else:
        # x has mean 0, so that the labels need not have it too.
        sums = np.zeros((num_classes, width))
        np.add.at(sums, labels, x)
        kernel = np.linalg.solve(x.T @ x + penalty * np.eye(width), sums.T)
    kernel /= spread[:, None]
    return LinearClassifier(kernel, share - mean @ kernel)


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` images of each class, of all there are where these are fewer.

    With the same seed fewer shots are some of more.

    Args:
        labels: int [images], -1 of an image that is not to be drawn.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[labels[order] >= 0]
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled within each
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)  # within its class
    return order[place < shots]


def few_shot_accuracy(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
) -> dict[int, np.ndarray]:
    """Accuracies, from 0 to 1, by the number of shots: float64 [seeds].

    Memory is that of the shots, of a classifier, and of a few thousand test images.

    Args:
        train, test: features [images, width] and labels, int [images], -1 of an image to leave
            out, as not all are. The features may be memory-mapped: of those to train on only the
            shots are read.
    """
    found = {}
    for count in shots:
        accuracies = []
        for seed in range(seeds):
            drawn = draw_shots(train[1], count, seed)
            classifier = fit_ridge(train[0][drawn], train[1][drawn], num_classes)
            right = [
                classifier.predict(features) == labels for features, labels in _in_chunks(*test)
            ]
            accuracies.append(np.concatenate(right).mean())
        found[count] = np.array(accuracies)
    return found


def _in_chunks(features: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    usable = np.flatnonzero(labels >= 0)
    for start in range(0, len(usable), _ROWS):
        rows = usable[start : start + _ROWS]
        yield features[rows], labels[rows]
