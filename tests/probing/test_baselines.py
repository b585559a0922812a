"""Raw-pixel baselines, on real scans."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from xtra_jax.errors import UserError
from xtra_jax.probing.baselines import logistic_regression_accuracy, nearest_neighbour_accuracy


@pytest.fixture(scope="module")
def split():
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)[..., None]
    return images[:300], digits.target[:300], images[300:400], digits.target[300:400]


def test_pixels_alone_tell_most_digits_apart(split):
    assert logistic_regression_accuracy(*split) > 0.85
    assert nearest_neighbour_accuracy(*split) > 0.85


def test_one_neighbour_knows_the_examples_it_has_seen(split):
    images, labels, _, _ = split
    assert nearest_neighbour_accuracy(images, labels, images, labels, neighbours=1) == 1.0


@pytest.mark.parametrize("baseline", [logistic_regression_accuracy, nearest_neighbour_accuracy])
def test_without_scikit_learn_the_sentence_says_what_to_install(baseline, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'xtra_jax\[demo\]'"):
        baseline(*split)
