"""Few-shot ridge regression against scikit-learn's, and the draws of its shots."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xtra_jax.probing import few_shot
from xtra_jax.probing.few_shot import draw_shots, few_shot_accuracy, fit_ridge


def random_features(images, width, classes, seed=0):
    """Clusters that overlap, on an offset, with features of very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = (centres[labels] + rng.normal(0, 1.5, (images, width))) * np.logspace(-3, 2, width)
    return (features + 7).astype(np.float32), labels


def digits():
    scans, labels = load_digits(return_X_y=True)  # three of the 64 pixels are always 0
    return scans.astype(np.float32), labels


def of_scikit_learn(features, labels, test, classes, penalty):
    model = make_pipeline(StandardScaler(), Ridge(alpha=penalty))
    model.fit(features.astype(np.float64), np.eye(classes)[labels])
    return model.predict(test.astype(np.float64))


@pytest.mark.parametrize("images", [4, 30, 47, 48, 49, 400])  # fewer and more than features
def test_random_features_are_told_apart_as_by_scikit_learn(images):
    features, labels = random_features(images, 48, 7)
    test, _ = random_features(500, 48, 7, seed=1)
    for penalty in (1e-3, 48.0):
        ours = fit_ridge(features, labels, 7, penalty=penalty)
        theirs = of_scikit_learn(features, labels, test, 7, penalty)
        np.testing.assert_allclose(test @ ours.kernel + ours.bias, theirs, atol=1e-8)
        np.testing.assert_array_equal(ours.predict(test), theirs.argmax(axis=1))


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_digits_are_told_apart_as_by_scikit_learn(shots):
    features, labels = digits()
    drawn = draw_shots(labels[:1000], shots, seed=3)
    ours = fit_ridge(features[drawn], labels[drawn], 10).predict(features[1000:])
    theirs = of_scikit_learn(features[drawn], labels[drawn], features[1000:], 10, penalty=64.0)
    np.testing.assert_array_equal(ours, theirs.argmax(axis=1))


def test_the_scale_and_the_offset_of_a_feature_change_no_prediction():
    features, labels = random_features(40, 16, 4)
    test, _ = random_features(300, 16, 4, seed=1)
    changed = np.linspace(0.1, 90, 16), np.linspace(-5, 5, 16)
    ours = fit_ridge(features, labels, 4).predict(test)
    other = fit_ridge(features * changed[0] + changed[1], labels, 4)
    np.testing.assert_array_equal(ours, other.predict(test * changed[0] + changed[1]))


def test_shots_are_of_every_class_without_repeats_and_more_of_them_hold_fewer():
    labels = np.random.default_rng(0).integers(6, size=300)
    labels[:40] = -1  # not to be drawn
    one, five = (draw_shots(labels, shots, seed=1) for shots in (1, 5))
    assert np.bincount(labels[five], minlength=6).tolist() == [5] * 6
    assert len(set(five)) == 30 and set(one) < set(five)
    assert set(five) != set(draw_shots(labels, 5, seed=2))
    np.testing.assert_array_equal(five, draw_shots(labels, 5, seed=1))


def test_a_class_with_fewer_images_gives_all_it_has_and_one_without_none():
    labels = np.array([0, 2, 2, 2, 0, 2, 2])
    assert sorted(labels[draw_shots(labels, 3, seed=0)]) == [0, 0, 2, 2, 2]
    features = np.random.default_rng(0).normal(size=(7, 5))
    assert set(fit_ridge(features, labels, 3).predict(features)) == {0, 2}


def test_accuracies_are_those_of_each_draw_over_all_usable_test_images(monkeypatch):
    features, labels = digits()
    train, test = (features[:1000], labels[:1000]), (features[1000:], labels[1000:].copy())
    test[1][::7] = -1
    usable = test[1] >= 0
    found = few_shot_accuracy(train, test, 10, shots=(1, 10), seeds=2)
    for shots in (1, 10):
        for seed in range(2):
            drawn = draw_shots(train[1], shots, seed)
            guessed = fit_ridge(train[0][drawn], train[1][drawn], 10).predict(test[0][usable])
            assert found[shots][seed] == (guessed == test[1][usable]).mean()
    assert found[10].mean() > found[1].mean() > 0.3
    monkeypatch.setattr(few_shot, "_ROWS", 100)
    again = few_shot_accuracy(train, test, 10, shots=(1, 10), seeds=2)
    np.testing.assert_array_equal(found[10], again[10])
