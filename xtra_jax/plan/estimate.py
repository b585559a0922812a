"""How long a step takes at least, how long a run, and how large a batch fits: plain arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from xtra_jax.errors import UserError
from xtra_jax.model.flops import forward_flops, train_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.parallel.peaks import Accelerator
from xtra_jax.parallel.program import Collective
from xtra_jax.plan.compile import Attempt

# Training images, so that a plan needs no data: ImageNet-1k's, and what the paper has of
# ImageNet-21k in its winter 2021 release.
EXAMPLES = {"imagenet2012": 1_281_167, "imagenet21k": 13_100_000}

# Programs compiled beyond the two that give the line: each takes minutes at full size.
TRIES = 3

_PREDICTOR_PARTS = ("predictor_linear", "predictor_attention", "heads")


def num_examples(config: ConfigDict, given: int | None) -> int:
    """Images of the training set: those given, or those that a known data set has.

    Raises:
        UserError: neither is known, and the run's length depends on them.
    """
    if given is not None and given < 1:
        raise UserError(f"--examples={given} must be the number of training images, at least 1")
    whole = config.data.train_split == "train"
    known = given or (EXAMPLES.get(config.data.dataset) if whole else None)
    if known is None and config.steps == 0:
        raise UserError(
            f"how many images data.dataset={config.data.dataset} has in data.train_split="
            f"{config.data.train_split} is not known without it: "
            "give --examples N, or --config.steps"
        )
    return known or config.batch_size


def step_flops(config: ConfigDict, spec: XTRASpec, shard_size: int = 0) -> dict[str, int]:
    """Floating-point operations of an optimizer step over all chips.

    Args:
        shard_size: images that a chip, or a group along mesh.tensor, has at a time; see
            `flops.computed_layers`.

    Returns:
        "useful", the model's own, nothing twice; "recomputed", what model.remat computes again;
        and the two together by the dtype of the matrix products, "bfloat16" and "float32".
    """
    how = dict(drop_last_block=config.model.drop_last_block, shard_size=shard_size)
    forward = forward_flops(spec, **how)
    again = recomputed_flops(spec, forward, config.model.remat)
    images = config.batch_size
    flops = {
        "useful": images * train_flops(spec, **how),
        "recomputed": images * sum(again.values()),
        "bfloat16": 0,
        "float32": 0,
    }
    for part in forward.keys() - {"total"}:
        dtype = spec.predictor_dtype if part in _PREDICTOR_PARTS else spec.dtype
        flops[str(dtype)] += images * (3 * forward[part] + again.get(part, 0))
    return flops


def recomputed_flops(spec: XTRASpec, forward: dict[str, int], remat: str) -> dict[str, int]:
    """What the backward pass of one image computes again, by the parts of the forward pass."""
    if remat == "none":
        return {}
    again = {part: forward[part] for part in ("encoder_attention", "predictor_attention")}
    if remat == "full":
        # A layer's last product is not needed again: nothing in the layer depends on it.
        for part, hidden, width in (
            ("encoder_linear", spec.encoder.mlp_hidden, spec.encoder.width),
            ("predictor_linear", 4 * spec.predictor.width, spec.predictor.width),
        ):
            again[part] = forward[part] * (4 * width + hidden) // (4 * width + 2 * hidden)
    return again


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds that a step takes at least, for each of what a chip does at once; None if unknown."""

    compute: float
    memory: float | None
    interconnect: float | None

    @property
    def bound(self) -> str:
        """What takes longest."""
        known = {name: seconds for name, seconds in vars(self).items() if seconds is not None}
        return max(known, key=known.get)

    @property
    def seconds(self) -> float:
        return getattr(self, self.bound)


def step_time(
    flops: dict[str, int],
    traffic: int | None,
    collectives: Iterable[Collective] | None,
    accelerator: Accelerator,
    num_chips: int,
) -> StepTime:
    """The bounds on a step's time, all at the accelerator's peak rates.

    Args:
        flops: of `step_flops`, shared out evenly over the chips.
        traffic: bytes that each chip moves through its memory.
        collectives: of one chip; each sends what a ring needs, over all the chip's links.
    """
    compute = flops["bfloat16"] / accelerator.flops + flops["float32"] / accelerator.float32_flops
    sent = None if collectives is None else sum(c.sent * c.count for c in collectives)
    return StepTime(
        compute=compute / num_chips,
        memory=None if traffic is None else traffic / accelerator.bandwidth,
        interconnect=None if sent is None else sent / accelerator.interconnect,
    )


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch per chip that was found to fit, 0 if none did, and all that was tried."""

    per_chip: int
    tried: tuple[Attempt, ...]


def largest_batch(attempt: Callable[[int], Attempt], first: Attempt) -> Largest:
    """Finds the largest batch per chip: two that fit give a line, a third on it is confirmed.

    Args:
        attempt: compiles for a number of images per chip.
        first: an attempt already made; where it didn't fit, smaller ones are made until one does.
    """
    tried = {first.per_chip: first}

    def fits(per_chip: int) -> bool:
        if per_chip not in tried:
            tried[per_chip] = attempt(per_chip)
        return tried[per_chip].fits

    def found() -> Largest:
        fitting = [per_chip for per_chip, one in tried.items() if one.fits]
        return Largest(max(fitting, default=0), tuple(tried.values()))

    high = first.per_chip
    while not fits(high):
        if high == 1:
            return found()
        high //= 2
    low = max(1, high // 2)
    if low == high:
        high = 2
    if not fits(high) or not fits(low):
        return found()

    candidate = on_the_line(tried[low], tried[high])
    for _ in range(TRIES):
        refused = min((one for one in tried.values() if not one.fits), key=_size, default=None)
        if refused and candidate >= refused.per_chip:
            candidate = _below(tried[high], refused)
        if candidate <= high or fits(candidate):
            break
        candidate = math.inf
    return found()


def _size(attempt: Attempt) -> int:
    return attempt.per_chip


def _below(fitting: Attempt, refused: Attempt) -> int:
    """A size between one that fits and one that doesn't, on their line if the latter is known."""
    if refused.required is not None and refused.required > refused.available:
        candidate = on_the_line(fitting, refused)
        if candidate < refused.per_chip:
            return candidate
    return _round((fitting.per_chip + refused.per_chip) // 2)


def on_the_line(low: Attempt, high: Attempt) -> int:
    """Images per chip at which the line through two programs' peaks meets what is available."""
    slope = (high.required - low.required) / (high.per_chip - low.per_chip)
    if slope <= 0:
        return high.per_chip
    return _round(int((high.available - low.required) / slope + low.per_chip))


def _round(per_chip: int) -> int:
    """Down to a size that is used: a multiple of 4 from 16 on."""
    return per_chip if per_chip < 16 else per_chip // 4 * 4
