"""Peak rates of accelerators, from their makers' data sheets."""

from __future__ import annotations

import jax

# Dense bfloat16 matrix products per chip, FLOP/s, by how jax names the device.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device | None = None) -> float | None:
    """Peak bfloat16 FLOP/s of a device, by the longest name that its kind begins with.

    Returns:
        None where it isn't known, as for CPUs.
    """
    kind = (device or jax.devices()[0]).device_kind
    names = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None
