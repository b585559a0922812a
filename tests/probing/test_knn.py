"""Weighted nearest neighbours against scikit-learn's, on one device and on a mesh."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing import knn
from xtra_jax.probing.knn import knn_accuracy, nearest, votes_winner

CLASSES = 10


def sets(name):
    """Training and test features with their labels."""
    if name == "digits":
        features, labels = load_digits(return_X_y=True)
    else:
        rng = np.random.default_rng(0)
        labels = rng.integers(CLASSES, size=1100)
        centres = rng.normal(size=(CLASSES, 24))
        features = centres[labels] + rng.normal(0, 1.5, (1100, 24))
    features = features.astype(np.float32)
    return (features[:800], labels[:800]), (features[800:1100], labels[800:1100])


def of_scikit_learn(train, test, k):
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    return model.fit(train[0].astype(np.float64), train[1]).predict(test[0].astype(np.float64))


@pytest.fixture(params=[None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "mesh"])
def mesh(request):
    return request.param and make_mesh(request.param)


@pytest.mark.parametrize("name", ["random", "digits"])
def test_neighbours_vote_as_in_scikit_learn(name, mesh):
    train, test = sets(name)
    similarity, index = nearest(train[0], test[0], 20, mesh=mesh)
    found = knn_accuracy(train, test, CLASSES, mesh=mesh)
    for k in (10, 20):
        expected = of_scikit_learn(train, test, k)
        ours = votes_winner(similarity[:, :k], train[1][index[:, :k]], CLASSES)
        np.testing.assert_array_equal(ours, expected)
        assert found[k] == (expected == test[1]).mean()


def test_chunks_of_both_sets_find_the_same_neighbours_and_the_first_of_equals(mesh, monkeypatch):
    rng = np.random.default_rng(1)
    train = rng.integers(-1, 2, (61, 4)).astype(np.float32)  # 81 vectors: many come twice
    test = rng.integers(-1, 2, (37, 4)).astype(np.float32)
    test[5] = 0
    whole = nearest(train, test, 7, mesh=mesh)
    monkeypatch.setattr(knn, "_TEST_ROWS", 3)
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 9)
    chunked = nearest(train, test, 7, mesh=mesh)
    np.testing.assert_allclose(whole[0], chunked[0], atol=1e-6)
    np.testing.assert_array_equal(chunked[1][5], np.arange(7))  # all are equally far from nothing
    assert (np.diff(chunked[0]) <= 0).all()
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test)]
    exact = unit[1] @ unit[0].T
    np.testing.assert_allclose(-np.sort(-exact, axis=1)[:, :7], chunked[0], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, chunked[1], 1), chunked[0], atol=1e-6)


def test_a_near_neighbour_outweighs_many_far_ones_and_votes_are_counted_in_parts(monkeypatch):
    similarity = np.array([[0.99, 0.7, 0.7, 0.7], [0.71, 0.7, 0.7, 0.7]])
    labels = np.array([[1, 0, 0, 0], [1, 0, 0, 0]])
    assert votes_winner(similarity, labels, 2).tolist() == [1, 0]
    monkeypatch.setattr(knn, "_VOTES", 2)
    assert votes_winner(similarity, labels, 2).tolist() == [1, 0]


def test_images_without_a_label_neither_vote_nor_count(monkeypatch):
    train, test = sets("random")
    hidden = (train[1].copy(), test[1].copy())
    hidden[0][::3] = hidden[1][::4] = -1
    kept = hidden[0] >= 0, hidden[1] >= 0
    expected = knn_accuracy(
        (train[0][kept[0]], train[1][kept[0]]), (test[0][kept[1]], test[1][kept[1]]), CLASSES
    )
    for features, usable in zip((train[0], test[0]), kept, strict=True):
        features[~usable] = np.nan  # whatever an encoder makes of no image
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 128)
    seen, find = [], knn.nearest
    monkeypatch.setattr(
        knn, "nearest", lambda *sets, **how: seen.extend(sets[:2]) or find(*sets, **how)
    )
    found = knn_accuracy((train[0], hidden[0]), (test[0], hidden[1]), CLASSES)
    assert found == expected
    assert seen[0] is train[0] and seen[1] is test[0]  # and no copies without those images


def test_of_a_set_smaller_than_k_all_images_vote():
    train, test = sets("random")
    few = (train[0][:6], train[1][:6])
    found = knn_accuracy(few, test, CLASSES)
    assert found[10] == found[20] == knn_accuracy(few, test, CLASSES, neighbours=(6,))[6]
