"""The questions put to a GPU, in order of value, as cases that follow from what is known already.

Variants are ranked by programs of two depths: time and memory grow by the same amount with every
layer, so two shallow programs, quick to compile, tell the deep one. Where only a difference matters
one of them is enough. Only the default and the winner are compiled whole.

What to expect of three calls of 570 seconds on XTRA-H/14, one after the other on one machine. These
are estimates: programs of this size compiled in 110 s for 32 layers and in 50 to 120 for 4, on two
busy cores and without trying kernels out. What no longer fits into a call leaves the rest of it to
shorter cases: a whole program is not begun with less than 250 s.

1. 560: the device's rates 15; cuDNN's attention against XLA's 20; the whole model at batch 128,
   traced, 180; the peer, whole, 180; cuDNN and XLA by two depths 165.
2. 560: batches of 160, 96 and 64 at one depth 125; subsets by two depths 80, no stochastic depth
   40; recomputation of all but linear layers 80, scanned and whole 60; the winner, whole, 180, but
   only where it is not the default; the small model and its peer 110 each.
3. 550, by 40: four changes of GELU and LayerNorm; three of XLA's flags; the peer with either kind
   of sums, 120; gradients and moments in bfloat16; then other parts, and the small model otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.gpu_deviation import wrong
from benchmarks.gpu_settings import name_of

BETTER = 1.01  # how much faster than the default a variant has to be


class Cost(NamedTuple):
    """Of a case, in seconds.

    Attributes:
        needs: must be left of the call for it to begin.
        limit: after which it is ended.
    """

    needs: float
    limit: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        question: what it helps to answer, a heading of the table.
        kind: "rates", "attention", "step" or "peer".
        settings: of `gpu_settings` for steps and peers.
        needs, limit: see `Cost`.
        flags: XLA_FLAGS that it runs under, beside those of the environment.
        round_seconds: that a round of timed steps is to last.
        traced: its kernels are listed, too.
    """

    question: str
    kind: str
    settings: dict
    needs: float
    limit: float
    flags: str = ""
    round_seconds: float = 1.0
    traced: bool = False

    @property
    def name(self) -> str:
        return name_of(self.kind, self.settings, self.flags)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is: the real thing, or a toy to try the benchmark with."""

    model: str
    small_model: str  # asked about late
    depths: tuple[int, int]  # of the programs that rank variants
    depth: int  # of the whole model
    batch: int  # at which variants are ranked, and the first that is tried whole
    smaller: tuple[int, ...]  # batches that are tried whole where that does not fit
    others: tuple[int, ...]  # batches that are ranked, too
    small_batch: int
    side: int  # of the square product whose rate is measured
    round_seconds: float
    brief: Cost
    shallow: Cost
    whole: Cost
    small: Cost  # the small model, whole
    compiled: bool = True  # whether the peer is compiled too, which takes a toy minutes on a CPU


REAL = Scale(
    *("h14", "b16", (4, 8), 32, 128, (96, 64), (160, 96, 64), 256, 8192, 1.0),
    *(Cost(30, 120), Cost(45, 180), Cost(250, 330), Cost(120, 300)),
)
TOY = Scale(
    *("tiny", "tiny", (1, 2), 3, 4, (2,), (6, 2), 2, 64, 0.01),
    *4 * (Cost(1, 300),),
    compiled=False,
)

GELU_AND_NORM = ("jax_gelu", "fast_variance", "no_gelu", "no_norm")
FLAGS = (
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_triton_gemm_any=true",
)
OTHER_PARTS = (
    dict(reduce_dtype="bfloat16"),
    dict(mu_dtype="bfloat16"),
    dict(predictor_dtype="float32", attention="xla"),  # cuDNN has no attention in float32
    dict(whatif="no_attention"),
    dict(drop_last_block=False),
    dict(whatif="gelu_tanh"),
    dict(whatif="jax_attention", attention="xla"),
)


class Known:
    """Results so far, by the name of their case."""

    def __init__(self, results: dict[str, dict], scale: Scale):
        self.results = results
        self.scale = scale

    def step(self, question: str, depth: int, batch: int, cost: Cost, **settings) -> Case:
        """A train step of ours."""
        given = dict(model=self.scale.model, depth=depth, batch=batch) | settings
        return Case(question, "step", given, *cost, round_seconds=self.scale.round_seconds)

    def get(self, case: Case) -> dict | None:
        """The result of a case, None where there is none or it failed."""
        found = self.results.get(case.name)
        return found if found and "error" not in found else None

    def no_room(self, case: Case) -> bool:
        return self.results.get(case.name, {}).get("failure") == "memory"

    def shallow(self, question: str, number: int = 0, batch: int = 0, **settings) -> Case:
        """The first or the second of the shallow programs of a variant."""
        depth = self.scale.depths[number]
        return self.step(question, depth, batch or self.scale.batch, self.scale.shallow, **settings)

    def pair(self, question: str, **settings) -> tuple[Case, Case]:
        """Both of them."""
        return self.shallow(question, 0, **settings), self.shallow(question, 1, **settings)

    def whole(self, question: str, batch: int = 0, **settings) -> Case:
        """The whole model; traced."""
        depth, batch = self.scale.depth, batch or self.scale.batch
        case = self.step(question, depth, batch, self.scale.whole, **settings)
        return dataclasses.replace(case, traced=True)

    def seconds(self, settings: dict) -> float | None:
        """Per step of the whole model, by the line through two depths; None if it is wrong."""
        shallow, deep = found = [self.get(case) for case in self.pair("", **settings)]
        if not all(found) or any(wrong(one, self.results) for one in found):
            return None
        (few, more), depth = self.scale.depths, self.scale.depth
        slope = (deep["seconds"] - shallow["seconds"]) / (more - few)
        return shallow["seconds"] + slope * (depth - few) if slope > 0 else None

    def fastest(self, *choices: dict) -> dict:
        """The settings that take least; the first unless another one is clearly faster."""
        seconds = [self.seconds(settings) for settings in choices]
        best = 0
        for number, value in enumerate(seconds):
            if value and (not seconds[best] or BETTER * value < seconds[best]):
                best = number
        return choices[best]


def questions(results: dict[str, dict], scale: Scale = REAL) -> Iterator[Case]:
    """All cases in order, those asked already among them; later ones follow from results."""
    known = Known(results, scale)
    yield Case("what the device reaches", "rates", dict(side=scale.side), *scale.brief)
    check = Case("attention alone", "attention", dict(model=scale.model), *scale.brief)
    yield check

    # The default, and the peer.
    cudnn, xla = {}, dict(attention="xla")
    attentions = (cudnn, xla) if (known.get(check) or {}).get("cudnn_is_right") else (xla,)
    default = attentions[0]
    yield from _first_that_fits(known, *_wholes(known, **default))
    yield from _first_that_fits(known, *_peers(known, scale.depth, scale.batch, *scale.smaller))
    for number in (0, 1):
        for choice in attentions:
            yield known.shallow("attention", number, **choice)
    best = known.fastest(*attentions)

    for batch in scale.others:
        yield known.shallow("batch", 1, batch, **best)
    yield from known.pair("stochastic depth", **dict(best, drop_path="subset"))
    yield known.shallow("stochastic depth", 1, **dict(best, drop_path="none"))
    dots = dict(best, remat="dots")
    yield from known.pair("layout and recomputation", **dots)
    yield dataclasses.replace(
        known.whole("layout and recomputation", **dict(dots, scan=True)),
        needs=scale.shallow.needs + 15,  # one layer compiled
        traced=False,
    )
    best = known.fastest(best, dots)
    yield from _first_that_fits(known, *_wholes(known, _best_batch(known, best, default), **best))

    yield _small(known, **best)
    yield from _first_that_fits(known, *_small_peers(known))
    yield from _parts(known, best, *(dict(whatif=name) for name in GELU_AND_NORM))
    yield from _flags(known, best, *FLAGS)
    yield from _other_peers(known)
    yield from _parts(known, best, *OTHER_PARTS)
    yield from _flags(known, best, "--xla_gpu_enable_latency_hiding_scheduler=true")
    yield from _published_peers(known)
    for option in (dict(attention="xla"), dict(drop_path="subset"), dict(remat="dots")):
        yield _small(known, **dict(best, **option))
    yield from _first_that_fits(known, *_small_peers(known, residual="float32"))


def _wholes(known: Known, larger: int = 0, **settings) -> Iterator[Case]:
    """The whole model, at smaller batches too."""
    scale = known.scale
    for batch in dict.fromkeys((larger or scale.batch, scale.batch, *scale.smaller)):
        yield known.whole("the whole model", batch, **settings)


def _first_that_fits(known: Known, *cases: Case) -> Iterator[Case]:
    """A case, and smaller ones as long as there was no room for it."""
    for case in cases:
        yield case
        if not known.no_room(case):
            return


def _best_batch(known: Known, best: dict, default: dict) -> int:
    """The batch with most images/s at one depth; none larger than what surely fits whole.

    What the whole model takes grows at most in proportion to the batch.
    """
    scale = known.scale
    whole = known.get(known.whole("", **default)) or {}
    peak, room = whole.get("peak_bytes"), whole.get("memory_limit_bytes")

    def rate(batch: int) -> float:
        fits = batch <= scale.batch or (peak and room and peak * batch <= room * scale.batch)
        found = known.get(known.shallow("", 1, batch, **best))
        return batch / found["seconds"] if fits and found else 0.0

    chosen = max(scale.others, key=rate)
    return chosen if rate(chosen) > BETTER * rate(scale.batch) > 0 else scale.batch


def _peer(known: Known, question: str, depth: int, batch: int, **settings) -> Case:
    scale = known.scale
    given = dict(model=scale.model, depth=depth, batch=batch, compiled=scale.compiled) | settings
    cost = scale.whole if depth == scale.depth else scale.shallow
    return Case(question, "peer", given, *cost, round_seconds=scale.round_seconds)


def _peers(known: Known, depth: int, *batches: int, **settings) -> Iterator[Case]:
    """The peer at one batch after the other."""
    for batch in batches:
        yield _peer(known, "the whole model", depth, batch, **settings)


def _other_peers(known: Known) -> Iterator[Case]:
    """The peer with the sums of autocast beside its own; whole if that is the faster one."""
    scale = known.scale
    ours, autocast = (
        _peer(known, "the peer", scale.depths[1], scale.batch, residual=residual)
        for residual in ("bfloat16", "float32")
    )
    yield from (ours, autocast)
    times = [(known.get(case) or {}).get("seconds") for case in (ours, autocast)]
    if all(times) and BETTER * times[1] < times[0]:
        peers = _peers(known, scale.depth, scale.batch, *scale.smaller, residual="float32")
        yield from _first_that_fits(known, *peers)


def _published_peers(known: Known) -> Iterator[Case]:
    """The peer uncompiled, and with the last block, as published."""
    depth, batch = known.scale.depths[1], known.scale.batch
    if known.scale.compiled:
        yield _peer(known, "the peer", depth, batch, compiled=False)
    yield _peer(known, "the peer", depth, batch, drop_last_block=False)


def _parts(known: Known, best: dict, *options: dict) -> Iterator[Case]:
    """What parts of the step cost, and options that may pay, each at one depth."""
    for option in options:
        yield known.shallow("what parts cost", **dict(best, **option))


def _flags(known: Known, best: dict, *flags: str) -> Iterator[Case]:
    for flag in flags:
        yield dataclasses.replace(known.shallow("XLA flags", **best), flags=flag)


def _small(known: Known, **settings) -> Case:
    """The smaller model, whole."""
    scale = known.scale
    given = dict(settings, model=scale.small_model)
    return known.step("the small model", 0, scale.small_batch, scale.small, **given)


def _small_peers(known: Known, **settings) -> Iterator[Case]:
    scale = known.scale
    for batch in (scale.small_batch, scale.small_batch // 2):
        case = _peer(known, "the small model", 0, batch, model=scale.small_model, **settings)
        yield dataclasses.replace(case, needs=scale.small.needs, limit=scale.small.limit)
