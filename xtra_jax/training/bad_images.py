"""When broken images end a run: too many of them in one epoch, or nothing else at the start."""

from __future__ import annotations

import math

from xtra_jax.errors import RunFailed

ALWAYS_ALLOWED = 10  # a small data set may have these, whatever their share


class BadImageLimit:
    """Counts the images of weight 0 of each epoch, in which every image comes once.

    It looks at what a step itself counted over all devices, so that all processes of a run come
    to the same end at the same step. A run that is continued begins counting anew.

    Args:
        examples: of the training set.
        batch_size: images per step.
        fraction: the share of the examples that may be broken.
    """

    def __init__(self, examples: int, batch_size: int, fraction: float):
        self._examples = examples
        self._batch_size = batch_size
        self._fraction = fraction
        epochs_at_once = math.ceil(batch_size / examples)
        self._allowed = max(ALWAYS_ALLOWED, fraction * examples) * epochs_at_once
        self._epoch = -1
        self._bad = 0
        self._any_good = False

    def add(self, step: int, valid: int) -> None:
        """Takes the number of valid images that the batch of a step (from 1) had.

        Raises:
            RunFailed: none is left to train on, or too many are broken.
        """
        epoch = (step - 1) * self._batch_size // self._examples
        if epoch != self._epoch:
            self._epoch, self._bad = epoch, 0
        # A batch that reaches into the next epoch may hold an image twice: it does not count.
        whole = step * self._batch_size <= (epoch + 1) * self._examples
        if whole or self._batch_size > self._examples:
            self._bad += self._batch_size - valid
        self._any_good = self._any_good or valid > 0
        if not self._any_good:
            raise RunFailed(
                f"all {self._batch_size} images of the first batch are unusable, so there is "
                "nothing to train on: mend the data set"
            )
        if self._bad > self._allowed:
            raise RunFailed(
                f"{self._bad} of the {self._examples} training images are unusable, which is more "
                f"than data.bad_fraction={self._fraction:g} of them: mend the data set, or raise "
                "that share"
            )
