"""The pseudo-random order of blocks, an ablation of the raster order (XTRA, section 4.3).

A fixed set of n block permutations, no two of which share a prefix, so that the model never sees
the same context with two different targets. Each training step draws one; evaluation uses the
first.
"""

from __future__ import annotations

import numpy as np

ORDERS = ("raster", "pseudo_random")


def pseudo_random_orders(num_blocks: int, seed: int = 0) -> np.ndarray:
    """As many permutations of the blocks as there are blocks, each beginning with another block.

    Distinct first entries are necessary and sufficient for no two to share a prefix of any length.

    Returns:
        int [num_blocks, num_blocks]; row r lists the blocks in the order in which they are seen.
    """
    rng = np.random.default_rng(seed)
    firsts = rng.permutation(num_blocks)
    rest = (rng.permutation(np.delete(np.arange(num_blocks), first)) for first in firsts)
    return np.stack([np.concatenate([[first], r]) for first, r in zip(firsts, rest, strict=True)])
