"""The planning job: from a config and a topology's name to what the run would need and cost."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata

import jax
from ml_collections import ConfigDict

from xtra_jax.config import model_spec, total_steps
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.overview import as_size
from xtra_jax.parallel.program import Collective, collectives, host_transfers
from xtra_jax.parallel.topologies import Topology, devices_of, find_topology
from xtra_jax.parallel.traffic import memory_traffic
from xtra_jax.plan.compile import Attempt, compile_step
from xtra_jax.plan.estimate import largest_batch, num_examples, step_flops, step_time
from xtra_jax.training.attention_choice import attention_by_tower
from xtra_jax.training.storage import absolute, explained, write_text

SECONDS_PER_DAY = 86_400


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """Takes no program from JAX's cache: the time that a plan tells is the compiler's."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@_compiling_anew()
def plan(
    config: ConfigDict,
    topology: str,
    *,
    largest: bool = False,
    examples: int | None = None,
    note: Callable[[str], None] | None = None,
) -> dict:
    """Compiles the train step of a config for a topology and says what it needs and costs.

    Args:
        topology: a name, see `xtra_jax.parallel.topologies.SHAPES`.
        largest: look for the largest batch per chip that fits as well; compiles twice more or so.
        examples: images of the training set; needed for data sets whose size isn't known.
        note: is told what is going on; by default it is written to stderr.

    Returns:
        What `xtra plan --out` writes: see `report.describe` for what the entries mean. Bytes,
        FLOPs and seconds; what the compiler leaves open by refusing the program is None.

    Raises:
        UserError: there is no such topology, its compiler isn't installed, or config, mesh and
            topology don't fit together.
        RunFailed: the compiler refuses the program, and not for want of memory.
    """
    note = note or _to_stderr
    chips = find_topology(topology)
    images = num_examples(config, examples)
    steps = total_steps(config, images)
    mesh = make_mesh(dict(config.mesh), devices_of(chips))
    attention_by_tower(config, model_spec(config), mesh)  # is refused before anything compiles

    attempt = compile_step(config, chips, mesh, steps, note)
    note(f"{_verdict(attempt)} (compiled in {attempt.seconds:.0f} s)")
    found = described(config, chips, mesh, attempt)
    found["run"] = _run(config, found["step"], steps, images)
    if largest:

        def of_size(per_chip: int) -> Attempt:
            other = config.copy_and_resolve_references()
            other.batch_size = per_chip * (config.batch_size // attempt.per_chip)
            tried = compile_step(other, chips, mesh, steps, note)
            note(f"{_verdict(tried)} (compiled in {tried.seconds:.0f} s)")
            return tried

        found["largest"] = _largest(config, of_size, attempt)
    return found


def described(config: ConfigDict, topology: Topology, mesh, attempt: Attempt) -> dict:
    """One compiled or refused train step, as numbers by name."""
    module, chip = attempt.module, topology.accelerator
    spec = model_spec(config)
    flops = step_flops(config, spec, attempt.per_chip)
    between = None if module is None else collectives(module)
    traffic = None if module is None else memory_traffic(module)
    time_ = step_time(flops, traffic, between, chip, topology.num_chips)
    return {
        "config": config.to_dict(),
        "topology": {
            "name": topology.name,
            "chip": topology.kind,
            "chips": topology.num_chips,
            "processes": len({device.process_index for device in mesh.devices.flat}),
            "peak": {
                "bfloat16_flops": chip.flops,
                "float32_flops": chip.float32_flops,
                "memory_bandwidth": chip.bandwidth,
                "interconnect_bandwidth": chip.interconnect,
            },
        },
        "versions": versions(topology),
        "mesh": dict(mesh.shape),
        "batch": {"global": attempt.batch_size, "per_chip": attempt.per_chip},
        "attention": attention_by_tower(config, spec, mesh),
        "compile_seconds": round(attempt.seconds, 1),
        "fits": attempt.fits,
        "memory": {
            "required": attempt.required,
            "available": attempt.available,
            **(vars(attempt.memory) if attempt.memory else {}),
        },
        "collectives": None if between is None else totals(between),
        "host_transfers": None if module is None else [vars(t) for t in host_transfers(module)],
        "flops": flops,
        "memory_traffic": traffic,
        "step": {**vars(time_), "seconds": time_.seconds, "bound": time_.bound},
    }


def totals(found: list[Collective]) -> list[dict]:
    """The collectives of one kind, dtype and group size together, those that send most first."""
    count, size, sent = Counter(), Counter(), Counter()
    known: dict[tuple, bool] = {}
    for one in found:
        key = (one.kind, one.dtype, one.group_size)
        count[key] += one.count
        size[key] += one.count * one.bytes
        sent[key] += one.count * one.sent
        known[key] = known.get(key, True) and one.count_known
    return [
        {
            **dict(zip(("kind", "dtype", "group_size"), key, strict=True)),
            "count": count[key],
            "bytes": size[key],
            "bytes_sent": int(sent[key]),
            "count_known": known[key],
        }
        for key in sorted(count, key=sent.get, reverse=True)
    ]


def _run(config: ConfigDict, step: dict, steps: int, examples: int) -> dict:
    return {
        "examples": None if config.steps > 0 else examples,
        "steps": steps,
        "images_per_second": config.batch_size / step["seconds"],
        "days": steps * step["seconds"] / SECONDS_PER_DAY,
    }


def _largest(config: ConfigDict, of_size: Callable[[int], Attempt], first: Attempt) -> dict:
    found = largest_batch(of_size, first)
    return {
        "per_chip": found.per_chip,
        "global": found.per_chip * (config.batch_size // first.per_chip),
        "tried": [
            {
                "per_chip": one.per_chip,
                "fits": one.fits,
                "required": one.required,
                "compile_seconds": round(one.seconds, 1),
            }
            for one in found.tried
        ],
    }


def versions(topology: Topology) -> dict[str, str]:
    """What decides over the compiled program, beside the config."""
    names = ("jax", "jaxlib", "libtpu" if topology.is_tpu else "jax-cuda13-plugin")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a compiler built by hand
            found[name] = "unknown"
    return found


def write(found: dict, path: str) -> None:
    """Writes a plan as JSON.

    Raises:
        UserError: it can't be written there.
    """
    target = absolute(path)
    with explained(f"cannot write --out={path}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(found, indent=2) + "\n")


def _verdict(attempt: Attempt) -> str:
    needs = "an amount not named" if attempt.required is None else as_size(attempt.required)
    return (
        f"{attempt.per_chip} images per chip {'fit' if attempt.fits else 'do not fit'}: "
        f"{needs} of {as_size(attempt.available)}"
    )


def _to_stderr(text: str, begin: float = time.monotonic()) -> None:
    print(f"[{time.monotonic() - begin:4.0f} s] {text}", file=sys.stderr, flush=True)
