"""One case of the GPU benchmark, in a process of its own.

    python -m benchmarks.gpu_case CASE OUT PLATFORM

CASE is JSON, of `gpu_questions.Case`; the result is written to the file OUT, also as JSON.
PLATFORM is "cuda" or "cpu".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def main() -> None:
    case, out, platform = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if case["kind"] == "peer":
        from benchmarks import gpu_peer

        _write(out, gpu_peer.run(case["settings"], case["round_seconds"], platform))
        return

    from xtra_jax.training.compilation import compilation_cache_at

    # Not JAX's own way, which leaves half a program where a case is ended while it writes one.
    folder = f"{tempfile.gettempdir()}/xtra_gpu_cache"
    with compilation_cache_at(folder, lambda note: print(note, flush=True)) as publish:
        answer = {"step": _step, "rates": _rates, "attention": _attention}[case["kind"]]
        for result in answer(case, out.parent, publish):
            _write(out, result)


def _write(out: Path, result: dict) -> None:
    """In one stroke. What is written is the result, whatever becomes of the process after that."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result, allow_nan=False))
    part.replace(out)


def _end_with_parent(parent: int) -> None:
    """A case that outlived a killed benchmark would hold the device and disturb the next one."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _device() -> dict:
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "memory_limit_bytes": stats.get("bytes_limit"),
    }


def _peak_memory() -> int | None:
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _chip():
    import jax

    from xtra_jax.parallel.peaks import accelerator_of

    return accelerator_of(jax.devices()[0].device_kind)


def _rates(case: dict, folder: Path, publish: Callable) -> Iterator[dict]:
    """What the device reaches: a large bfloat16 product, and a copy."""
    import jax
    import jax.numpy as jnp

    side = case["settings"]["side"]
    key = jax.random.key(0)
    a = jax.random.normal(key, (side, side), jnp.bfloat16)
    product = jax.jit(lambda a, b: a @ b)
    seconds = _repeated(lambda: product(a, a))
    x = jnp.zeros(4 * side * side, jnp.float32)
    plus = jax.jit(lambda x: x + 1)
    copy_seconds = _repeated(lambda: plus(x))
    yield {
        **_device(),
        "product_flops": 2 * side**3 / seconds,
        "copy_bytes_per_s": 2 * x.nbytes / copy_seconds,
    }


def _repeated(call, repeats: int = 10, rounds: int = 5) -> float:
    import statistics

    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(repeats):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begin) / repeats)
    return statistics.median(seconds)


def _compiled(settings):
    """The compiled step, its arguments, and how long that took and whether a cache helped."""
    import jax

    from benchmarks import gpu_step

    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
    )
    begin = time.perf_counter()
    compiled, optimizer = gpu_step.compile_step(settings)
    seconds = time.perf_counter() - begin
    return compiled, optimizer, {"compile_seconds": seconds, "compile_cached": bool(hits)}


def _rate(batch: int, flops_per_image: int, seconds: float) -> dict:
    chip = _chip()
    return {
        "images_per_s": batch / seconds,
        "mfu": batch * flops_per_image / seconds / chip.flops if chip else None,
    }


def _attention(case: dict, folder: Path, publish: Callable) -> Iterator[dict]:
    from benchmarks import gpu_attention

    yield _device() | gpu_attention.compared(case["settings"]["model"])


def _step(case: dict, folder: Path, publish: Callable) -> Iterator[dict]:
    """What was timed; then, where that is asked for, with the kernels of a few steps."""
    from benchmarks import gpu_profile, gpu_step
    from benchmarks.gpu_settings import Settings, name_of

    settings = Settings(**case["settings"])
    compiled, optimizer, compiling = _compiled(settings)
    publish()  # where this ends too late, the next attempt need not compile
    state, batch = gpu_step.arguments(settings, optimizer)
    times, state = gpu_step.timed(compiled, state, batch, round_seconds=case["round_seconds"])
    result = {**_device(), **compiling, **times, "peak_bytes": _peak_memory()}
    facts = gpu_step.flops_facts(settings)
    result |= _rate(settings.batch, facts["useful_flops_per_image"], times["seconds"])
    try:
        facts |= gpu_step.program_facts(compiled)
    except Exception as error:  # what was timed is worth more than what is read off the program
        result["program_error"] = f"{type(error).__name__}: {error}"[:300]
    result |= facts | gpu_step.predicted(facts, settings, _chip())
    yield result
    if case["traced"]:
        trace = gpu_profile.trace_name(name_of("step", case["settings"], case["flags"]))
        yield result | gpu_profile.profile(compiled, state, batch, folder / trace)


if __name__ == "__main__":
    main()
