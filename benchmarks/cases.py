"""The models that are timed, and the ways of training them, by name.

A way is "ours" or "peer" (PyTorch, `torch_peer`) and what is changed about it, after commas:

    all_blocks              keeps the last block, as published
    bfloat16                computes in bfloat16
    tcmalloc                memory from gperftools' allocator, which keeps what is freed: glibc
                            gives the working memory back after every step, and it comes again page
                            by page, zeroed
    ours: cudnn (with bfloat16, on a GPU), halves (of the attention, as on CPUs by default),
          remat=full, remat=dots, scan_layers
    peer: compiled          through torch.compile
          plain             attention in products and softmax, not PyTorch's fused one
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from ctypes.util import find_library

from benchmarks.device import Device
from xtra_jax.errors import UserError
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

_BOTH = ("all_blocks", "bfloat16", "tcmalloc")
OURS = (*_BOTH, "cudnn", "halves", "remat=full", "remat=dots", "scan_layers")
PEERS = (*_BOTH, "compiled", "plain")


def model(name: str, image_size: int = 0, depth: int = 0) -> XTRASpec:
    """One of `VARIANTS`, of which the image size and the encoder's depth can be changed.

    Raises:
        UserError: images of that size cannot be cut into its patches and blocks.
    """
    width, full_depth, heads, ratio = variant(name)
    size, patch_size, block_size = _GRIDS.get(name, _PUBLISHED_GRID)
    grid = Grid(image_size or size, patch_size, block_size)
    predictor, hidden = _PREDICTORS[name]
    encoder = EncoderSpec(grid, width, depth or full_depth, heads, ratio)
    return XTRASpec(encoder, predictor, HeadSpec(hidden))


def have_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def how_to_install_torch() -> str:
    return f"`{sys.executable} -m pip install torch` installs it"


def find_tcmalloc() -> str | None:
    """The name of gperftools' library, where the system has it."""
    return find_library("tcmalloc_minimal") or find_library("tcmalloc")


def check_torch(way: str) -> None:
    """Raises UserError where a way needs PyTorch, and it is not installed."""
    if not have_torch():
        raise UserError(f"{way!r} needs PyTorch, which is missing: {how_to_install_torch()}")


def check_ways(names: tuple[str, ...], baseline: str = "") -> None:
    """Raises UserError where a way is named twice, or the baseline is none of them."""
    if len(set(names)) < len(names):
        raise UserError(f"a way is named twice: {' '.join(names)}")
    if baseline and baseline not in names:
        raise UserError(f"the baseline {baseline!r} is none of the ways: {' '.join(names)}")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training, read from its name.

    Raises:
        UserError: the name is not one, or needs what is not installed.
    """

    name: str

    def __post_init__(self):
        known = {"ours": OURS, "peer": PEERS}.get(self.who)
        if known is None:
            raise UserError(f"{self.name!r} is neither 'ours' nor 'peer', with changes or without")
        for change in self.changes:
            if change not in known:
                raise UserError(f"{self.name!r}: {change!r} is none of {', '.join(known)}")
        self.execution()  # has one kind of each
        if "cudnn" in self.changes and self.dtype != "bfloat16":
            raise UserError(f"{self.name!r}: cuDNN's attention takes 16-bit inputs; add ,bfloat16")
        if "tcmalloc" in self.changes and not find_tcmalloc():
            raise UserError(
                f"{self.name!r} needs gperftools' tcmalloc, which is missing: on Debian and Ubuntu "
                "`apt install libtcmalloc-minimal4` installs it"
            )
        if self.who == "peer":
            check_torch(self.name)

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
        return {"LD_PRELOAD": find_tcmalloc() or ""} if "tcmalloc" in self.changes else {}

    def check_on(self, device: Device) -> None:
        """Raises UserError where this cannot be computed on a device."""
        if "cudnn" in self.changes and device.platform != "gpu":
            raise UserError(f"{self.name!r} needs an NVIDIA GPU, and here is a {device.platform}")

    def execution(self) -> Execution:
        remats = [c.removeprefix("remat=") for c in self.changes if c.startswith("remat=")]
        attentions = [change for change in self.changes if change in ("halves", "cudnn")]
        for kinds, of_what in ((remats, "remat"), (attentions, "attention")):
            if len(kinds) > 1:
                raise UserError(f"{self.name!r} has two kinds of {of_what}, and can have one")
        return Execution(
            attention=attentions[0] if attentions else "xla",
            scan_layers="scan_layers" in self.changes,
            remat=remats[0] if remats else "none",
        )
