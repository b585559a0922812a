"""A trace of a few train steps, and from it the kernels that take the time."""

from __future__ import annotations

import contextlib
import gzip
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileOptions

STEPS = 3
LARGEST_TRACE = 15 * 2**20  # bytes of the compressed trace that is kept
SHOWN = 30

# Lines of a device that group kernels already listed on its streams.
_DERIVED = ("Steps", "XLA Modules", "XLA Ops", "XLA TraceMe", "Framework", "Source")

# Kinds of kernels, by what their names hold: the first that matches.
_KINDS = (
    ("attention", r"fmha|flash|sdpa|mha_|cudnn.*attention"),
    ("product", r"gemm|nvjet|cutlass|cublas|matmul|wgmma|dot"),
    ("copy", r"memcpy|memset|copy"),
    ("transpose", r"transpose"),
    ("reduction", r"reduce"),
    ("elementwise", r"fusion|loop|elementwise|add|convert|broadcast|multiply|select"),
)


def trace_name(case: str) -> str:
    """The file for a case's trace: of letters, digits, and three marks that every system allows."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{case}.xplane.pb.gz")


def profile(step, state, batch, file: Path) -> dict:
    """Traces some steps, keeps the trace as a file, and adds up its kernels.

    Returns:
        "kernels": the largest, each with its milliseconds and calls per step; "kinds": milliseconds
        per step by kind; "busy" and "span" milliseconds per step of the device; "trace".
    """
    options = ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as place:
        jax.profiler.start_trace(place, profiler_options=options)
        try:
            for _ in range(STEPS):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
        finally:
            jax.profiler.stop_trace()
        found = Path(place).rglob("*.xplane.pb")
        data = max(found, key=lambda one: one.stat().st_size).read_bytes()
    packed = gzip.compress(data, 6)
    kept = len(packed) <= LARGEST_TRACE
    if kept:
        file.write_bytes(packed)
    trace = file.name if kept else f"not kept: {len(packed)} bytes compressed"
    return {
        **summed(kernel_events(ProfileData.from_serialized_xspace(data)), STEPS),
        "trace": trace,
    }


def kernel_events(data: ProfileData) -> list[tuple[str, float, float]]:
    """What ran on the device: name, begin and duration in ns of every kernel and copy.

    GPU kernels are the events on the streams of a device's plane. On a CPU, which has no such
    plane, they are the host's events that name the instruction that they run.
    """
    events = []
    devices = [plane for plane in data.planes if plane.name.startswith("/device:GPU")]
    for plane in devices:
        for line in plane.lines:
            if not line.name.startswith(_DERIVED):
                events += [
                    (_name(event), event.start_ns, event.duration_ns) for event in line.events
                ]
    if devices:
        return events
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    events.append((event.name, event.start_ns, event.duration_ns))
    return events


def _name(event) -> str:
    """A kernel's name and, where a library made it, the instruction that it runs."""
    with contextlib.suppress(StopIteration):
        op = next(str(value) for name, value in event.stats if name == "hlo_op")
        return event.name if op.replace(".", "_") == event.name else f"{event.name} ({op})"
    return event.name


def _family(name: str) -> str:
    """A name without its numbers: the kernels of all layers under one."""
    return re.sub(r"[._]\d+\b", "", re.sub(r"\s*\(.*\)$", "", name))


def kind_of(name: str) -> str:
    """The kind of a kernel, by its own name or the instruction's."""
    lowered = name.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, lowered)), "other")


def summed(events: Iterable[tuple[str, float, float]], steps: int) -> dict:
    """Events added up by kernel and by kind, in milliseconds per step."""
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    kinds: dict[str, float] = defaultdict(float)
    examples: dict[str, str] = {}
    intervals = []
    for name, begin, duration in events:
        family = _family(name)
        kernels[family][0] += duration
        kernels[family][1] += 1
        examples.setdefault(family, name)
        kinds[kind_of(name)] += duration
        intervals.append((begin, begin + duration))
    per_step = 1e6 * steps
    largest = sorted(kernels.items(), key=lambda item: -item[1][0])
    return {
        "kernels": [
            {
                "name": family,
                "example": examples[family],
                "kind": kind_of(examples[family]),
                "ms": total / per_step,
                "calls": calls / steps,
            }
            for family, (total, calls) in largest[:SHOWN]
        ],
        "kinds": {kind: kinds[kind] / per_step for kind in sorted(kinds, key=kinds.get)[::-1]},
        "busy_ms": _covered(intervals) / per_step,
        "span_ms": (max(e for _, e in intervals) - min(b for b, _ in intervals)) / per_step
        if intervals
        else 0.0,
    }


def _covered(intervals: list[tuple[float, float]]) -> float:
    """The time in which at least one of the intervals runs."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered
