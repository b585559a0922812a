"""Bootstrap intervals, against one that resamples the examples themselves."""

import numpy as np
import pytest

from xtra_jax.probing import bootstrap
from xtra_jax.probing.bootstrap import accuracy_interval, mean_per_class_interval

CLASS_TOTAL = np.array([40, 0, 110, 10])
CLASS_CORRECT = np.array([30, 0, 100, 4])
LABELS = np.repeat(np.arange(4), CLASS_TOTAL)
CORRECT = np.concatenate(
    [np.arange(total) < right for total, right in zip(CLASS_TOTAL, CLASS_CORRECT, strict=True)]
)


def resampled(statistic, draws=4000):
    """The plain bootstrap: draws examples, and looks at each draw as at a test set."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(LABELS), len(LABELS))
        found.append(statistic(LABELS[chosen], CORRECT[chosen]))
    return np.quantile(found, [0.025, 0.975])


def mean_per_class(labels, correct):
    return np.mean([correct[labels == label].mean() for label in np.unique(labels)])


def test_the_interval_of_an_accuracy_is_that_of_resampled_examples():
    plain = resampled(lambda labels, correct: correct.mean())
    ours = accuracy_interval(int(CORRECT.sum()), len(CORRECT))
    # Both are estimates, and accuracies of 160 examples lie 1/160 apart.
    np.testing.assert_allclose(ours, plain, atol=1.01 / len(CORRECT))


def test_the_interval_of_a_mean_per_class_is_that_of_resampled_examples():
    plain = resampled(mean_per_class)
    np.testing.assert_allclose(
        mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL), plain, atol=0.01
    )
    # The small class makes it much wider than the accuracy's.
    low, high = accuracy_interval(int(CORRECT.sum()), len(CORRECT))
    assert plain[1] - plain[0] > 1.5 * (high - low)


@pytest.mark.parametrize("correct, total", [(50, 100), (9700, 10_000)])
def test_the_interval_of_an_accuracy_is_about_two_standard_errors_to_each_side(correct, total):
    share = correct / total
    error = 1.96 * np.sqrt(share * (1 - share) / total)
    low, high = accuracy_interval(correct, total)
    np.testing.assert_allclose([share - low, high - share], error, rtol=0.1, atol=0.5 / total)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    first = mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL, draws=200)
    assert mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL, draws=200) == first
    assert mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL, draws=200, seed=1) != first


def test_many_classes_are_drawn_in_parts_without_another_result(monkeypatch):
    whole = mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL, draws=100)
    monkeypatch.setattr(bootstrap, "_CHUNK", 6 * 7)  # 7 draws at once
    assert mean_per_class_interval(CLASS_CORRECT, CLASS_TOTAL, draws=100) == whole


def test_a_perfect_head_has_an_interval_without_width():
    assert accuracy_interval(30, 30) == (1.0, 1.0)
    assert mean_per_class_interval(np.array([3, 4]), np.array([3, 4])) == (1.0, 1.0)
