"""What is timed on, asked in processes that end: the one that starts contestants holds no device.

A TPU belongs to one process at a time, and a process takes most of a GPU's memory when it begins.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import jax
import jax.numpy as jnp

from xtra_jax.errors import RunFailed, UserError
from xtra_jax.parallel.peaks import accelerator_of

# So that several processes can hold a GPU at once: each takes memory when it needs it.
SHARE_A_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclasses.dataclass(frozen=True)
class Device:
    """The first device that JAX finds: its platform ("cpu", "gpu", "tpu"), and its kind."""

    platform: str
    kind: str

    @property
    def in_turns(self) -> bool:
        """Whether contestants can take turns: a TPU is held by one process until that has ended."""
        return self.platform != "tpu"

    @property
    def order(self) -> str:
        """How contestants were timed, for the results."""
        if self.in_turns:
            return "in turns; ratios are medians of those of each turn"
        return (
            "one after the other, for only one process can hold a TPU; ratios are of medians, and "
            "what slowed the machine down for one of them is in them"
        )

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of matrix products, as JAX computes them by default; None where not known."""
        known = accelerator_of(self.kind)
        if known is None:
            return None
        return known.flops if dtype == "bfloat16" else known.float32_flops


@functools.cache
def here() -> Device:
    """The device that is timed on. To be asked before this process uses JAX itself.

    Raises:
        UserError: JAX finds no device.
        RunFailed: the process that looked for it died.
    """
    try:
        return _elsewhere(_found)
    except RunFailed:
        raise
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"JAX finds no device to time on: {first}") from None


def product_rates(dtypes: Iterable[str]) -> dict[str, float]:
    """FLOP/s of one large matrix product in each dtype: the ceiling to hold a step against."""
    width = 1024 if here().platform == "cpu" else 8192  # where starting one takes longer than 1024
    return {dtype: _elsewhere(_product_rate, dtype, width) for dtype in dtypes}


def _elsewhere(function: Callable, *arguments):
    """What a function returns in a process that has ended when this returns."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as process:
            return process.submit(function, *arguments).result()
    except BrokenProcessPool:
        name = function.__name__.strip("_").replace("_", " ")
        raise RunFailed(
            f"the process that was to tell of the device ({name}) died; what it said is above"
        ) from None


def _found() -> Device:
    os.environ.update(SHARE_A_GPU)
    device = jax.devices()[0]
    return Device(device.platform, device.device_kind)


def _product_rate(dtype: str, width: int, repeats: int = 20) -> float:
    a = jnp.ones((width, width), dtype) / width
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * width**3 / statistics.median(times)
