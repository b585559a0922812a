"""Devices that aren't there: named TPU slices and NVIDIA hosts that a program can be compiled for.

XLA compiles for a described topology on any machine: libtpu holds the TPU compiler and describes
the slices itself, the CUDA plugin wants the GPU's facts as text. No accelerator is touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os

import jax

from xtra_jax.errors import UserError
from xtra_jax.parallel.peaks import ACCELERATORS, Accelerator

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)
_HOST = ("1", "2", "4", "8")

# The shapes of slices that Google Cloud offers, and numbers of GPUs on one host joined by NVLink.
SHAPES = {
    "v4": _CUBE,
    "v5e": _PLANE,
    "v5p": (*_CUBE, "16x16x16", "16x16x24"),
    "v6e": _PLANE,
    "a100": _HOST,
    "h100": _HOST,
    "h200": _HOST,
}

_KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5e",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
}

# What libtpu wants to know where there is no TPU, and how it is kept from writing warnings about
# that; the lock that it takes otherwise guards chips, and none is used.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# Device properties as CUDA reports them: multiprocessors, FP32 units in each, clock in GHz, bytes
# of shared memory in each and at most per block, of L2, and of memory, bytes/s of memory.
_GPUS = {
    "a100": (
        *("NVIDIA A100-SXM4-80GB", "major: 8"),
        *(108, 64, 1.41, 167_936, 166_912, 41_943_040, 85_100_068_864, 2_039_040_000_000),
    ),
    "h100": (
        *("NVIDIA H100 80GB HBM3", "major: 9 feature_extension: ACCELERATED_FEATURES"),
        *(132, 128, 1.98, 233_472, 232_448, 52_428_800, 84_929_347_584, 3_352_320_000_000),
    ),
    "h200": (
        *("NVIDIA H200", "major: 9 feature_extension: ACCELERATED_FEATURES"),
        *(132, 128, 1.98, 233_472, 232_448, 52_428_800, 150_100_000_000, 4_800_000_000_000),
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are connected.

    Attributes:
        family: a key of `SHAPES`.
        shape: of the slice, "4x8", or the number of GPUs.
    """

    family: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.family}:{self.shape}"

    @property
    def kind(self) -> str:
        """The maker's name of the chip."""
        return _KINDS[self.family]

    @property
    def accelerator(self) -> Accelerator:
        return ACCELERATORS[self.kind]

    @property
    def num_chips(self) -> int:
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def is_tpu(self) -> bool:
        return self.family.startswith("v")

    @property
    def compiler_options(self) -> dict | None:
        """What the compiler must be told: GPU kernels can't be timed where there is no GPU."""
        return None if self.is_tpu else {"xla_gpu_autotune_level": 0}


def find_topology(name: str) -> Topology:
    """A topology by its name, such as "v5e:4x4", "h100:8" or, for one GPU, "h100".

    Raises:
        UserError: there is none of that name; it lists those that there are, likest first.
    """
    family, _, shape = name.strip().lower().partition(":")
    if not shape and SHAPES.get(family) == _HOST:
        shape = "1"
    if shape in SHAPES.get(family, ()):
        return Topology(family, shape)

    def likeness(family: str) -> float:
        names = (f"{family}:{shape}" for shape in SHAPES[family])
        return max(difflib.SequenceMatcher(None, name.lower(), other).ratio() for other in names)

    families = sorted(SHAPES, key=likeness, reverse=True)
    known = "; ".join(f"{family}:{', '.join(SHAPES[family])}" for family in families)
    example = f"{families[0]}:{SHAPES[families[0]][2]}"
    raise UserError(f"there is no topology {name!r}; there are, as in {example}, {known}")


def devices_of(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, for a mesh to compile programs for; none of them can run one.

    From here on this process computes on its CPU, whatever accelerators the machine has.

    Raises:
        UserError: the compiler for them isn't installed, or can't describe them.
    """
    module, extra = ("libtpu", "tpu") if topology.is_tpu else ("jax_plugins.xla_cuda13", "cuda")
    if not _installed(module):
        raise UserError(
            f"compiling for {topology.name} needs the compiler for {topology.kind}, which is not "
            f"installed: pip install 'xtra_jax[{extra}]' (it needs no accelerator)"
        )
    jax.config.update("jax_platforms", "cpu")
    try:
        return list((_tpu_slice if topology.is_tpu else _gpu_host)(topology).devices)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"jax {jax.__version__} and the compiler for {topology.kind} beside it can't describe "
            f"{topology.name} ({reason}): pip install --upgrade 'xtra_jax[{extra}]'"
        ) from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module would be in
        return False


def _tpu_slice(topology: Topology):
    from jax.experimental import topologies

    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    options = {}
    if topology.family == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores as one device, as in runs
    if topology.num_chips == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{topology.family}:{topology.shape}", **options
    )


def _gpu_host(topology: Topology):
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=gpu_description(topology.family),
        topology=f"1x1x{topology.num_chips}",
    )


def gpu_description(family: str) -> str:
    """A GPU as XLA's compiler wants it described, a text proto of its GpuTargetConfigProto."""
    description, capability, *numbers = _GPUS[family]
    cores, units, clock, shared, shared_most, l2, memory, bandwidth = numbers
    return f"""
        gpu_device_info {{
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          registers_per_block_limit: 65536 registers_per_core_limit: 65536
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
          shared_memory_per_block: 49152 shared_memory_per_core: {shared}
          shared_memory_per_block_optin: {shared_most} l2_cache_size: {l2}
          device_memory_size: {memory} memory_bandwidth: {bandwidth}
          cuda_compute_capability {{ {capability} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 13 }}
        device_description_str: "{description}"
    """
