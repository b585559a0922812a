"""The questions put to a GPU, in order of value, as cases that follow from what is known already.

Variants are ranked by programs of two depths: time and memory grow by the same amount with every
layer, so two shallow programs, quick to compile, tell the deep one. Only the best are compiled
whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

# Seconds that a case takes at most, all included, and that must be left for it to be started. The
# first is for shallow programs, the second for whole ones and for the peer.
SHALLOW = (150, 30)
WHOLE = (330, 100)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        question: what it helps to answer, a heading of the table.
        kind: "rates", "step", "peer" or "profile".
        settings: of `gpu_step.Settings` for steps and profiles.
        limit: seconds after which it is ended.
        needs: seconds that must be left of the call for it to begin.
        flags: XLA_FLAGS that it runs under, beside those of the environment.
    """

    question: str
    kind: str
    settings: dict
    limit: float
    needs: float
    flags: str = ""
    round_seconds: float = 1.0

    @property
    def name(self) -> str:
        """Says all that was set, so that a case asked for twice is measured once."""
        told = [self.kind]
        for key, value in self.settings.items():
            if value is True:
                told.append(key)
            elif value is not False and value != "":
                told.append(value if isinstance(value, str) else f"{key}={value}")
        return " ".join(told + ([self.flags] if self.flags else []))


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is: the real thing, or a toy to try the benchmark with."""

    model: str
    small_model: str  # asked about last
    depths: tuple[int, int]  # of the programs that rank variants
    depth: int  # of the whole model
    rank_batch: int
    batches: tuple[int, ...]
    whole_batches: tuple[int, ...]  # tried from the first on, until one fits
    small_batch: int
    side: int  # of the square product whose rate is measured
    round_seconds: float
    compiled: bool = True  # whether the peer is compiled too, which takes a toy minutes on a CPU


REAL = Scale("h14", "b16", (4, 8), 32, 64, (96, 128, 160), (128, 96, 64), 256, 8192, 1.0)
TOY = Scale("tiny", "tiny", (1, 2), 3, 4, (2, 6), (4, 2), 2, 64, 0.01, compiled=False)

BASE = dict(attention="cudnn", scan=False, remat="none", drop_path="bernoulli")


class Known:
    """Results so far, by the name of their case."""

    def __init__(self, results: dict[str, dict], scale: Scale):
        self.results = results
        self.scale = scale

    def step(self, question: str, model: str, depth: int, batch: int, **settings) -> Case:
        """A train step of ours, shallow where `depth` is one of those that rank."""
        limit, needs = SHALLOW if depth in self.scale.depths else WHOLE
        given = dict(model=model, depth=depth, batch=batch) | BASE | settings
        return Case(question, "step", given, limit, needs, "", self.scale.round_seconds)

    def get(self, case: Case) -> dict | None:
        """The result of a case, None where there is none or it failed."""
        found = self.results.get(case.name)
        return found if found and "error" not in found else None

    def rank(self, question: str, batch: int, **settings) -> tuple[Case, Case]:
        """The two shallow programs of a variant."""
        model = self.scale.model
        return tuple(
            self.step(question, model, depth, batch, **settings) for depth in self.scale.depths
        )

    def extrapolated(self, pair: tuple[Case, Case], key: str = "seconds") -> float | None:
        """Seconds per step, or bytes, of the whole model by the line through two depths."""
        shallow, deep = (self.get(case) for case in pair)
        if not (shallow and deep and shallow.get(key) and deep.get(key)):
            return None
        (few, more), depth = self.scale.depths, self.scale.depth
        return shallow[key] + (deep[key] - shallow[key]) / (more - few) * (depth - few)

    def fastest(self, batch: int, choices: dict[str, dict]) -> dict:
        """The settings of the choice that takes least, extrapolated; the first if none is known."""

        def seconds(settings: dict) -> tuple[float, bool]:
            pair = self.rank("", batch, **settings)
            failed = any("error" in self.results.get(case.name, {}) for case in pair)
            return self.extrapolated(pair) or float("inf"), failed

        return min(choices.values(), key=seconds)


def questions(results: dict[str, dict], scale: Scale = REAL) -> Iterator[Case]:
    """All cases in order, those asked already among them; later ones follow from results."""
    known = Known(results, scale)
    batch = scale.rank_batch

    yield Case("what the device reaches", "rates", dict(side=scale.side), *SHALLOW)
    attentions = {name: dict(attention=name) for name in ("cudnn", "xla")}
    for choice in attentions.values():
        yield from known.rank("attention", batch, **choice)
    best = known.fastest(batch, attentions)

    # The headline, what the time goes to, and the peer.
    yield from _whole(known, best, "the whole model")
    yield from _peers(known, "the whole model", scale.model, scale.depth, _largest(known, best))
    # The peer drops no paths, so that this one does what it does.
    yield from _whole(known, dict(best, drop_path="none"), "the whole model", profiled=False)

    drops = {name: dict(best, drop_path=name) for name in ("bernoulli", "subset", "none")}
    for choice in drops.values():
        yield from known.rank("stochastic depth", batch, **choice)
    yield from _whole(known, drops["subset"], "the whole model", profiled=False)

    layouts = {
        f"{scan} {remat}": dict(best, scan=scan, remat=remat)
        for scan, remat in (
            *((False, "none"), (False, "dots"), (True, "dots")),
            *((True, "none"), (False, "full"), (True, "full")),
        )
    }
    for choice in layouts.values():
        yield from known.rank("layout and recomputation", batch, **choice)
    for size in scale.batches:
        yield from known.rank("batch", size, **best)
    for size in scale.batches:
        yield from known.rank("batch", size, **dict(best, remat="dots"))
    fastest = known.fastest(batch, layouts)
    yield from _whole(known, fastest, "the whole model")
    yield from _details(known, fastest)
    yield from _base_model(known, best)


def _whole(known: Known, variant: dict, question: str, profiled: bool = True) -> Iterator[Case]:
    """The whole model at the largest batch that fits, and its profile."""
    size = _largest(known, variant)
    case = _whole_case(known, variant, question, size)
    yield case
    if profiled and known.get(case):
        yield Case("profile", "profile", case.settings, *WHOLE)


def _whole_case(known: Known, variant: dict, question: str, size: int) -> Case:
    return known.step(question, known.scale.model, known.scale.depth, size, **variant)


def _largest(known: Known, variant: dict) -> int:
    """The first batch of the whole model that has not failed."""
    for size in known.scale.whole_batches:
        case = _whole_case(known, variant, "", size)
        if "error" not in known.results.get(case.name, {}):
            return size
    return size


def _peers(known: Known, question: str, model: str, depth: int, batch: int) -> Iterator[Case]:
    """PyTorch's step with the last block dropped as ours is, as published, and uncompiled."""
    seconds = known.scale.round_seconds
    for drop_last_block, compiled in ((True, True), (False, True), (True, False)):
        if compiled and not known.scale.compiled:
            continue
        settings = dict(
            model=model,
            depth=depth,
            batch=batch,
            drop_path="none",
            drop_last_block=drop_last_block,
            compiled=compiled,
        )
        yield Case(question, "peer", settings, *WHOLE, round_seconds=seconds)


def _details(known: Known, best: dict) -> Iterator[Case]:
    """What parts of the step cost, and options that may pay."""
    batch = known.scale.rank_batch
    options = (
        # cuDNN has no attention in float32.
        dict(predictor_dtype="float32", attention="xla"),
        dict(whatif="split_qkv"),
        dict(whatif="jax_gelu"),
        dict(whatif="gelu_tanh"),
        dict(whatif="fast_variance"),
        dict(whatif="no_norm"),
        dict(whatif="no_gelu"),
        dict(whatif="no_attention"),
        dict(reduce_dtype="bfloat16"),
        dict(mu_dtype="bfloat16"),
        dict(drop_last_block=False),
        dict(attention="xla", whatif="jax_attention"),
    )
    for option in options:
        yield from known.rank("what parts cost", batch, **dict(best, **option))
    for flag in (
        "--xla_gpu_enable_triton_gemm=false",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_triton_gemm_any=true",
    ):
        for case in known.rank("XLA flags", batch, **best):
            yield dataclasses.replace(case, flags=flag)


def _base_model(known: Known, best: dict) -> Iterator[Case]:
    """The smaller model, whole: its programs are quick to compile."""
    scale = known.scale
    model, batch = scale.small_model, scale.small_batch
    for option in ({}, dict(attention="xla"), dict(drop_path="subset"), dict(remat="dots")):
        yield known.step("the small model", model, 0, batch, **dict(best, **option))
    yield from _peers(known, "the small model", model, 0, batch)
