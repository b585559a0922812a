"""How an image is cut: pixels into patches (one token each), tokens into blocks."""

from __future__ import annotations

import dataclasses

from xtra_jax.errors import UserError


def divisors(number: int) -> list[int]:
    """Every positive divisor of `number`, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A square image of `image_size` pixels, `patch_size` pixels a patch, k tokens a block side.

    Raises:
        UserError: the patch does not divide the image, or the block does not divide the token
            grid (numbering such a grid would silently give two blocks the same number).
    """

    image_size: int
    patch_size: int
    block_size: int

    def __post_init__(self):
        for name in ("image_size", "patch_size", "block_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}, and must be at least 1")
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            raise UserError(
                f"model.image_size={self.image_size} is not a multiple of "
                f"model.patch_size={self.patch_size}: the nearest sizes that are, are "
                f"{' and '.join(str(s) for s in (below, below + self.patch_size) if s)}"
            )
        if self.tokens_per_side % self.block_size:
            raise UserError(
                f"model.block_size={self.block_size} does not divide the grid of "
                f"{self.tokens_per_side} x {self.tokens_per_side} tokens (image_size "
                f"{self.image_size} / patch_size {self.patch_size}): block sizes that do, are "
                f"{', '.join(map(str, divisors(self.tokens_per_side)))}"
            )

    @property
    def tokens_per_side(self) -> int:
        """g in the paper."""
        return self.image_size // self.patch_size

    @property
    def blocks_per_side(self) -> int:
        return self.tokens_per_side // self.block_size

    @property
    def num_tokens(self) -> int:
        return self.tokens_per_side**2

    @property
    def num_blocks(self) -> int:
        return self.blocks_per_side**2

    @property
    def tokens_per_block(self) -> int:
        return self.block_size**2

    @property
    def patch_dim(self) -> int:
        """Values of one RGB patch."""
        return 3 * self.patch_size**2

    @property
    def block_dim(self) -> int:
        """Values of one RGB block: what a head predicts."""
        return self.tokens_per_block * self.patch_dim

    def resized(self, image_size: int) -> Grid:
        """The same patches and blocks on images of another size."""
        return dataclasses.replace(self, image_size=image_size)
