"""The sizes of a model as plain data, and the encoder variants of the paper."""

from __future__ import annotations

import dataclasses
import difflib
from typing import NamedTuple

from xtra_jax.errors import UserError
from xtra_jax.model.grid import Grid


class Variant(NamedTuple):
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float


VARIANTS = {
    "tiny": Variant(192, 12, 3, 4.0),
    "small": Variant(384, 12, 6, 4.0),
    "base": Variant(768, 12, 12, 4.0),
    "large": Variant(1024, 24, 16, 4.0),
    "huge": Variant(1280, 32, 16, 4.0),
    "giant": Variant(1408, 40, 16, 48 / 11),
}


def variant(name: str) -> Variant:
    """An encoder variant by name; UserError naming the nearest one when there is none."""
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"model.variant={name!r} is not a variant: {meant}there are {', '.join(VARIANTS)} and, "
            "with width, depth and num_heads given, 'custom'"
        )
    return VARIANTS[name]


def _check_heads(room: str, width: int, num_heads: int):
    if width < 1 or num_heads < 1 or width % num_heads:
        raise UserError(
            f"{room}.num_heads={num_heads} does not divide {room}.width={width}: every attention "
            "head gets an equal share of the width"
        )


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Sizes of an encoder.

    `drop_path` is the stochastic depth rate of its last layer, and `drop_path_mode` one of
    `stochastic_depth.MODES`.
    """

    grid: Grid
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    drop_path_mode: str = "bernoulli"

    def __post_init__(self):
        _check_heads("model", self.width, self.num_heads)

    @property
    def mlp_hidden(self) -> int:
        # giant's ratio of 48/11 is meant to give a whole number, 6144: rounding hits it exactly.
        return round(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class PredictorSpec:
    """Sizes of the projection (`hidden`) and of the predictor behind it."""

    hidden: int
    width: int
    depth: int
    num_heads: int

    def __post_init__(self):
        _check_heads("predictor", self.width, self.num_heads)


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """Sizes of the pixel heads: `num_tokens` (m) heads, head j predicts block i + 1 + j.

    Without any (0), the model is an encoder alone: good for features and probes.
    """

    hidden: int
    num_tokens: int = 1


@dataclasses.dataclass(frozen=True)
class XTRASpec:
    """Everything that fixes a model's parameters, plus the dtypes it computes in.

    Raises:
        UserError: the image has too few blocks for every head to have a target.
    """

    encoder: EncoderSpec
    predictor: PredictorSpec
    head: HeadSpec
    dtype: str = "float32"
    predictor_dtype: str = "float32"

    def __post_init__(self):
        blocks, heads = self.encoder.grid.num_blocks, self.head.num_tokens
        if heads < 0:
            raise UserError(f"head.num_tokens={heads}, and must be 0 or more")
        if blocks <= heads:
            raise UserError(
                f"pretraining with head.num_tokens={heads} needs at least {heads + 1} blocks, and "
                f"model.block_size={self.encoder.grid.block_size} leaves {blocks}: with a smaller "
                "block_size or a larger image every head has a block to predict"
            )

    @property
    def grid(self) -> Grid:
        return self.encoder.grid
