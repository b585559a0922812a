"""How far an accuracy may be off because the test set is one of many: bootstrap intervals.

The test examples are resampled with replacement (Efron, "Bootstrap methods: another look at the
jackknife", 1979) and an interval holds the middle 95 % of the accuracies found. What a draw needs
of the examples is how many of each class are classified correctly, so the counts are drawn and not
the examples: the same distribution, whatever the size of the test set.

The test set is all that is resampled. How much a result varies with the seed of the training, or
gains from the choice of a learning rate, is not in these intervals.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95
DRAWS = 10_000
_CHUNK = 2**22  # counts held in memory at once


def accuracy_interval(
    correct: int, total: int, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The interval of a share of correct examples, 0 to 1.

    It has no width where all examples are right, or none: a resample has nothing else to draw.

    Args:
        correct, total: examples classified correctly, and examples.
    """
    accuracies = np.random.default_rng(seed).binomial(total, correct / total, size=draws) / total
    return _middle(accuracies)


def mean_per_class_interval(
    class_correct: np.ndarray, class_total: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The interval of an accuracy that is averaged over classes, 0 to 1.

    A resample draws the sizes of the classes too. One that leaves out a class averages the others.

    Args:
        class_correct, class_total: int [classes]; classes without examples play no part.
    """
    seen = class_total > 0
    right, total = class_correct[seen], class_total[seen]
    cells = np.concatenate([right, total - right]) / total.sum()
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(cells))
    means = []
    for begin in range(0, draws, chunk):
        count = min(chunk, draws - begin)
        drawn = rng.multinomial(total.sum(), cells, size=count)
        drawn_right, drawn_wrong = np.split(drawn, 2, axis=1)
        drawn_total = drawn_right + drawn_wrong
        means.append((drawn_right / np.maximum(drawn_total, 1)).sum(1) / (drawn_total > 0).sum(1))
    return _middle(np.concatenate(means))


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
