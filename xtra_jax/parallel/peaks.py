"""What accelerators can do at best, from their makers' data sheets: one table.

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. NVIDIA: the data sheets of the A100, H100
and H200 in their several forms, dense rates (half of the sparse ones on the sheets of H100 and
H200), links in one direction (half of what the sheets add up): NVLink, or PCIe on cards that have
NVLink only by a bridge bought apart.
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

_A100_40GB, _A100_80GB = 42_505_273_344, 85_100_068_864
_H100, _H100_NVL, _H200 = 84_929_347_584, 99_980_000_000, 150_100_000_000

# By how jax names the device, and CUDA a GPU: its whole name, as NVL and PCIe cards compute slower
# than the module they share the beginning of it with, and a part of a GPU (MIG) slower still.
ACCELERATORS = {
    "TPU v4": _tpu(275e12, 30.75, 1200e9, 300e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100-SXM4-40GB": _gpu(312e12, _A100_40GB, 1555e9, 300e9),
    "NVIDIA A100-PCIE-40GB": _gpu(312e12, _A100_40GB, 1555e9, 32e9),
    "NVIDIA A100-SXM4-80GB": _gpu(312e12, _A100_80GB, 2039e9, 300e9),
    "NVIDIA A100 80GB PCIe": _gpu(312e12, _A100_80GB, 1935e9, 32e9),
    "NVIDIA H100 80GB HBM3": _gpu(989e12, _H100, 3352e9, 450e9),
    "NVIDIA H100 PCIe": _gpu(756e12, _H100, 2000e9, 64e9),
    "NVIDIA H100 NVL": _gpu(835e12, _H100_NVL, 3900e9, 300e9),
    "NVIDIA H200": _gpu(989e12, _H200, 4800e9, 450e9),
    "NVIDIA H200 NVL": _gpu(835e12, _H200, 4800e9, 450e9),
}


def accelerator_of(kind: str) -> Accelerator | None:
    """The facts of a device by its kind; None if unknown."""
    return ACCELERATORS.get(kind)


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Peak bfloat16 FLOP/s of a device, None where it isn't known, as for CPUs."""
    known = accelerator_of((device or jax.devices()[0]).device_kind)
    return known.flops if known else None
