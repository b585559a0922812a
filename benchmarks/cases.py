"""The models that are timed, and the ways of training them, by name.

A way is "ours" or "peer" (PyTorch, `torch_peer`) and what is changed about it, after commas:

    all_blocks              keeps the last block, as published
    bfloat16                computes in bfloat16
    keep_memory             the C library keeps freed memory, see `turns.KEEP_MEMORY`
    ours: cudnn, remat=full, remat=dots, scan_layers
    peer: compiled          through torch.compile
          plain             attention in products and softmax, not PyTorch's fused one
"""

from __future__ import annotations

import dataclasses

from benchmarks.turns import KEEP_MEMORY
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec, variant

# Those of the base and huge models are published; the others' are ours, for timing.
_PREDICTORS = {
    "tiny": (PredictorSpec(1024, 192, 8, 3), 1536),
    "small": (PredictorSpec(2048, 384, 8, 6), 3072),
    "base": (PredictorSpec(4096, 768, 8, 6), 6144),
    "large": (PredictorSpec(4096, 768, 8, 6), 6144),
    "huge": (PredictorSpec(5120, 640, 8, 8), 9408),
}
VARIANTS = tuple(_PREDICTORS)
# Image size, patch size and block size.
_GRIDS = {"tiny": (128, 16, 2), "huge": (224, 14, 4)}
_PUBLISHED_GRID = (256, 16, 4)

OURS = ("all_blocks", "bfloat16", "keep_memory", "cudnn", "remat=full", "remat=dots", "scan_layers")
PEERS = ("all_blocks", "bfloat16", "keep_memory", "compiled", "plain")


def model(name: str, image_size: int = 0, depth: int = 0) -> XTRASpec:
    """One of `VARIANTS`, of which the image size and the encoder's depth can be changed."""
    width, full_depth, heads, ratio = variant(name)
    size, patch_size, block_size = _GRIDS.get(name, _PUBLISHED_GRID)
    grid = Grid(image_size or size, patch_size, block_size)
    predictor, hidden = _PREDICTORS[name]
    encoder = EncoderSpec(grid, width, depth or full_depth, heads, ratio)
    return XTRASpec(encoder, predictor, HeadSpec(hidden))


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training, read from its name.

    Raises:
        ValueError: the name is not one.
    """

    name: str

    def __post_init__(self):
        known = {"ours": OURS, "peer": PEERS}.get(self.who)
        if known is None:
            raise ValueError(f"{self.name!r} is neither 'ours' nor 'peer', with changes or without")
        for change in self.changes:
            if change not in known:
                raise ValueError(f"{self.name!r}: {change!r} is none of {', '.join(known)}")

    @property
    def who(self) -> str:
        return self.name.split(",")[0]

    @property
    def changes(self) -> tuple[str, ...]:
        return tuple(self.name.split(",")[1:])

    @property
    def drop_last_block(self) -> bool:
        return "all_blocks" not in self.changes

    @property
    def dtype(self) -> str:
        return "bfloat16" if "bfloat16" in self.changes else "float32"

    @property
    def environment(self) -> dict[str, str]:
        return KEEP_MEMORY if "keep_memory" in self.changes else {}

    def execution(self) -> Execution:
        remats = [c.removeprefix("remat=") for c in self.changes if c.startswith("remat=")]
        return Execution(
            attention="cudnn" if "cudnn" in self.changes else "xla",
            scan_layers="scan_layers" in self.changes,
            remat=remats[0] if remats else "none",
        )
