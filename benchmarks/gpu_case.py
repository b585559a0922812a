"""One case of the GPU benchmark, in a process of its own: `python -m benchmarks.gpu_case CASE OUT`.

CASE is JSON, of `gpu_questions.Case`; the result is written to the file OUT, also as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    case, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    result = {"step": _step, "profile": _profile, "rates": _rates, "peer": _peer}[case["kind"]](
        case, out.parent
    )
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result))
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


def _rates(case: dict, folder: Path) -> dict:
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
    return {
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


def _step(case: dict, folder: Path) -> dict:
    from benchmarks import gpu_step

    settings = gpu_step.Settings(**case["settings"])
    compiled, optimizer, compiling = _compiled(settings)
    state, batch = gpu_step.arguments(settings, optimizer)
    times, _ = gpu_step.timed(compiled, state, batch, round_seconds=case["round_seconds"])
    result = {**_device(), **compiling, **times, "peak_bytes": _peak_memory()}
    facts = gpu_step.flops_facts(settings)
    result |= _rate(settings.batch, facts["useful_flops_per_image"], times["seconds"])
    try:
        facts |= gpu_step.program_facts(compiled)
    except Exception as error:  # what was timed is worth more than what is read off the program
        result["program_error"] = f"{type(error).__name__}: {error}"[:300]
    return result | facts | gpu_step.predicted(facts, settings, _chip())


def _profile(case: dict, folder: Path) -> dict:
    from benchmarks import gpu_profile, gpu_step

    settings = gpu_step.Settings(**case["settings"])
    compiled, optimizer, compiling = _compiled(settings)
    state, batch = gpu_step.arguments(settings, optimizer)
    times, state = gpu_step.timed(compiled, state, batch, rounds=2, round_seconds=0.5)
    found = gpu_profile.profile(compiled, state, batch, folder)
    return {**_device(), **compiling, "seconds": times["seconds"], **found}


def _peer(case: dict, folder: Path) -> dict:
    from benchmarks import gpu_peer

    return gpu_peer.run(case["settings"], case["round_seconds"])


if __name__ == "__main__":
    main()
