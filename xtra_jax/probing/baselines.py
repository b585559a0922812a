"""What raw pixels alone reach: the honest neighbours of a probe accuracy on an easy data set."""

from __future__ import annotations

import numpy as np

from xtra_jax.errors import UserError


def logistic_regression_accuracy(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Accuracy, 0 to 1, of multinomial logistic regression on standardised pixels.

    Args:
        train_images, test_images: uint8 [examples, ...], flattened.
        train_labels, test_labels: [examples], int.

    Raises:
        UserError: without scikit-learn.
    """
    _require_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(_pixels(train_images), train_labels)
    return float(model.score(_pixels(test_images), test_labels))


def nearest_neighbour_accuracy(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = 5,
) -> float:
    """Accuracy, 0 to 1, of k nearest neighbours by Euclidean distance of pixels.

    Arguments and errors are those of `logistic_regression_accuracy`.
    """
    _require_scikit_learn()
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(n_neighbors=neighbours, algorithm="brute")
    model.fit(_pixels(train_images), train_labels)
    return float(model.score(_pixels(test_images), test_labels))


def _pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 vectors [examples, pixels] from 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _require_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError(
            "The raw-pixel baselines need scikit-learn: pip install 'xtra_jax[demo]'."
        ) from None
