"""The PyTorch peer's train step, timed as ours is: bfloat16 by autocast, on the GPU or a CPU."""

from __future__ import annotations

import math
import os
import statistics
import time

# The model's sizes come from ours, whose jax is to leave the GPU alone.
os.environ["JAX_PLATFORMS"] = "cpu"


def run(settings: dict, round_seconds: float, rounds: int = 5) -> dict:
    """Times the peer's step.

    Args:
        settings: "model", "depth", "batch", "drop_path", "drop_last_block" as of
            `gpu_step.Settings`, and "compiled": through `torch.compile`.

    Returns:
        What a step of ours gives as well: seconds, images/s, MFU, peak memory.
    """
    import torch

    from benchmarks.gpu_step import Settings, spec_of, useful_flops
    from benchmarks.torch_peer import XTRA, TrainStep
    from xtra_jax.parallel.peaks import accelerator_of

    given = dict(settings)
    compiled = given.pop("compiled")
    ours = Settings(**given)
    spec = spec_of(ours)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = XTRA(spec, drop_last_block=ours.drop_last_block).to(device)
    step = TrainStep(model, autocast=torch.bfloat16, compiled=compiled)
    size = spec.grid.image_size
    images = torch.randn(ours.batch, 3, size, size, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    step(images)
    wait()
    first = time.perf_counter() - begin
    step(images)  # compiles once more where the first call changed what it assumed
    wait()
    begin = time.perf_counter()
    for _ in range(2):
        step(images)
    wait()
    steps = max(2, math.ceil(2 * round_seconds / (time.perf_counter() - begin)))
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            loss = step(images)
        wait()
        seconds.append((time.perf_counter() - begin) / steps)
    median = statistics.median(seconds)
    flops = useful_flops(ours)
    chip = accelerator_of(kind)
    return {
        "device": kind,
        "torch": torch.__version__,
        "compile_seconds": first,
        "seconds": median,
        "seconds_rounds": seconds,
        "steps_per_round": steps,
        "loss": float(loss),
        "images_per_s": ours.batch / median,
        "useful_flops_per_image": flops,
        "mfu": ours.batch * flops / median / chip.flops if chip else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }
