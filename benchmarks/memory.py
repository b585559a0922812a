"""The most memory that this process has held: the machine's, and its device's where one tells."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path


def forget_the_host_peak() -> None:
    """From here on `host_peak_mib` counts anew, where the system can forget."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def host_peak_mib() -> float:
    """MiB since it was last forgotten, where the system can forget; and else since the start."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def jax_peak_mib() -> float | None:
    """MiB of its first device that JAX has held at most in this process, compiling included.

    None where the backend does not count, as on CPUs, whose memory is the host's.
    """
    import jax

    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def torch_peak_mib() -> float | None:
    """The same of PyTorch; None where it computes on CPUs."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
