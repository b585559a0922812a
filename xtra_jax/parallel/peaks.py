"""What accelerators can do at best, from their makers' data sheets: one table.

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. NVIDIA: the data sheets of the A100, H100
and H200, SXM modules unless it says PCIe, dense rates (half of the sparse ones on the sheets).
"""

from __future__ import annotations

import dataclasses

import jax

GIB = 2**30

# launch/local.sh gives a program this share of a GPU's memory; the rest is for CUDA and NCCL.
GPU_MEMORY_SHARE = 0.92


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One chip.

    Attributes:
        flops: bfloat16 matrix products, FLOP/s.
        float32_flops: float32 matrix products, FLOP/s, as JAX computes them when it is not told
            otherwise: in one pass of bfloat16 on TPUs, as TF32 on GPUs
            (docs.jax.dev/en/latest/201/precision.html).
        memory: bytes that a program can use: on TPUs what XLA says is there when it refuses a
            program, on GPUs `GPU_MEMORY_SHARE` of what CUDA says is there.
        bandwidth: of that memory, bytes/s.
        interconnect: bytes/s that a chip can send to its neighbours over all its links together.
    """

    flops: float
    float32_flops: float
    memory: int
    bandwidth: float
    interconnect: float


def _tpu(flops: float, gib: float, bandwidth: float, interconnect: float) -> Accelerator:
    return Accelerator(flops, flops, int(gib * GIB), bandwidth, interconnect)


def _gpu(flops: float, size: int, bandwidth: float, interconnect: float) -> Accelerator:
    memory = int(GPU_MEMORY_SHARE * size)
    return Accelerator(flops, flops / 2, memory, bandwidth, interconnect)


_V5E = _tpu(197e12, 15.75, 819e9, 200e9)
_V5P = _tpu(459e12, 95.73, 2765e9, 600e9)
_V6E = _tpu(918e12, 31.24, 1638e9, 400e9)

# By how jax names the device.
ACCELERATORS = {
    "TPU v4": _tpu(275e12, 30.75, 1200e9, 300e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100": _gpu(312e12, 85_100_068_864, 2039e9, 300e9),
    "NVIDIA H100 PCIe": _gpu(756e12, 84_929_347_584, 2000e9, 64e9),
    "NVIDIA H100": _gpu(989e12, 84_929_347_584, 3352e9, 450e9),
    "NVIDIA H200": _gpu(989e12, 151_397_597_184, 4800e9, 450e9),
}

PEAK_FLOPS = {kind: accelerator.flops for kind, accelerator in ACCELERATORS.items()}


def accelerator_of(kind: str) -> Accelerator | None:
    """The facts of a device, by the longest name that its kind begins with; None if unknown."""
    names = [name for name in ACCELERATORS if kind.startswith(name)]
    return ACCELERATORS[max(names, key=len)] if names else None


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Peak bfloat16 FLOP/s of a device, None where it isn't known, as for CPUs."""
    known = accelerator_of((device or jax.devices()[0]).device_kind)
    return known.flops if known else None
