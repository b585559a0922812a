"""The PyTorch peer's train step, timed as ours is: bfloat16 by autocast, on the GPU or a CPU."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time

from benchmarks.gpu_settings import PeerSettings, Settings

# The model's sizes come from ours, whose jax is to leave the GPU alone.
os.environ["JAX_PLATFORMS"] = "cpu"


def run(settings: dict, round_seconds: float, platform: str, rounds: int = 5) -> dict:
    """Times the peer's step.

    Args:
        settings: of `PeerSettings`.
        platform: "cuda" or "cpu".

    Returns:
        What a step of ours gives as well: seconds, images/s, MFU, peak memory.

    Raises:
        SystemExit: PyTorch has no GPU where one is asked for.
    """
    import torch

    if platform == "cuda" and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} finds no GPU here")

    from benchmarks.gpu_step import spec_of, useful_flops
    from benchmarks.torch_peer import XTRA, TrainStep
    from xtra_jax.parallel.peaks import accelerator_of

    given = PeerSettings(**settings)
    ours = Settings(given.model, given.depth, given.batch, drop_path="none")
    spec = spec_of(ours)
    device = torch.device(platform)
    kind = torch.cuda.get_device_name() if platform == "cuda" else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    residual = torch.bfloat16 if given.residual == "bfloat16" else None
    model = XTRA(spec, drop_last_block=given.drop_last_block, residual=residual).to(device)
    step = TrainStep(model, autocast=torch.bfloat16, compiled=given.compiled)
    size = spec.grid.image_size
    images = torch.randn(given.batch, 3, size, size, device=device)

    def wait() -> None:
        if platform == "cuda":
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
        "loss": float(loss) if math.isfinite(loss) else None,
        "images_per_s": given.batch / median,
        "useful_flops_per_image": flops,
        "mfu": given.batch * flops / median / chip.flops if chip else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if platform == "cuda" else None,
    }
