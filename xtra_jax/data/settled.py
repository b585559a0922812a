"""Transforms that leave nothing to chance: what comes out of them may be kept and used again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xtra_jax.data.transforms import EvalTransform, PretrainTransform

DRAWN = "drawn"


@dataclass(frozen=True)
class Settled:
    """A transform without a generator, that tells of each image whether it should have had one.

    A crop of the whole image is the same every time if the image is a square, but may be one of two
    if one side is a pixel longer than the other. So only images can tell, each by `drawn`.
    """

    transform: EvalTransform | PretrainTransform

    @property
    def size(self) -> int:
        return self.transform.size

    @property
    def blank(self) -> dict[str, np.ndarray]:
        """What stands for a bad image."""
        return {"image": np.zeros((self.size, self.size, 3), np.uint8), DRAWN: np.bool_(False)}

    def __call__(self, image: np.ndarray, rng=None) -> dict[str, np.ndarray]:
        """Maps uint8 `[height, width, 3]` to `image`, uint8 `[size, size, 3]`, and `drawn`."""
        chance = _Chance()
        return {"image": self.transform(image, chance), DRAWN: np.bool_(chance.drawn)}


def settled(transform) -> Settled | None:
    """The transform without its generator; None where that plainly decides something."""
    if isinstance(transform, EvalTransform):
        return Settled(transform)
    if not isinstance(transform, PretrainTransform) or transform.randaugment is not None:
        return None
    fixed = transform.scale[0] == transform.scale[1] and transform.ratio[0] == transform.ratio[1]
    return Settled(transform) if fixed and transform.flip in (0, 1) else None


class _Chance:
    """Stands for a generator where it has no choice, and notes where it would have had one."""

    def __init__(self):
        self.drawn = False

    def uniform(self, low: float, high: float) -> float:
        self.drawn |= low != high
        return low

    def integers(self, end: int) -> int:
        self.drawn |= end > 1
        return 0

    def random(self) -> float:
        return 0.5  # to be compared with a probability that is 0 or 1
