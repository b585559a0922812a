"""One mesh for one device and for a pod: the axes data, fsdp and tensor."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xtra_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# A batch is split over both: fsdp is data parallelism whose parameters are sharded too.
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)


def mesh_sizes(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """The size of every axis, with the one given as -1 inferred.

    Raises:
        UserError: the sizes don't multiply to the number of devices.
    """
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    inferred = [axis for axis, size in sizes.items() if size == -1]
    if len(inferred) > 1:
        raise UserError(f"{asked}: at most one axis can be inferred with -1")
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{asked}: every axis is at least 1, or -1 to be inferred")
    given = math.prod(size for size in sizes.values() if size != -1)
    if inferred and num_devices % given == 0:
        sizes[inferred[0]] = num_devices // given
    if math.prod(sizes.values()) != num_devices:
        raise UserError(
            f"{asked} asks for {'a multiple of ' if inferred else ''}{given} devices, and there "
            f"{'is' if num_devices == 1 else 'are'} {num_devices}: the sizes must multiply to that"
        )
    return sizes


def make_mesh(sizes: dict[str, int], devices=None) -> Mesh:
    """A mesh with Auto axes over all devices, or those given.

    Args:
        sizes: of each axis in `AXES`; -1 infers one, absent means 1.

    Raises:
        UserError: the sizes don't multiply to the number of devices, or there are none.
    """
    devices = all_devices() if devices is None else devices
    shape = mesh_sizes(sizes, len(devices))
    return jax.make_mesh(
        tuple(shape.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def all_devices() -> list[jax.Device]:
    """The devices of all processes.

    Raises:
        UserError: jax finds none, or others than JAX_PLATFORMS asks for first: with "cuda,cpu" it
            goes on without a GPU and without a word.
    """
    asked = (jax.config.jax_platforms or "").split(",")[0]
    remedy = "install xtra_jax[cuda] or xtra_jax[tpu] and a driver, or set JAX_PLATFORMS=cpu"
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(f"jax finds no devices to run on ({reason}): {remedy}") from error
    check_platform(asked, devices[0].platform)
    return devices


def check_platform(asked: str, found: str) -> None:
    """UserError where jax was asked for one platform ("" for any) and came up with another."""
    gpu = ("cuda", "rocm", "gpu")
    if asked and asked != found and not (asked in gpu and found in gpu):
        raise UserError(
            f"JAX_PLATFORMS asks for {asked}, and jax found {found} devices only: install "
            f"xtra_jax[{'tpu' if asked == 'tpu' else 'cuda'}] and the driver, or set "
            f"JAX_PLATFORMS={found}"
        )


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1):
    """UserError unless the global batch divides into microbatches and over the mesh."""
    shards = num_batch_shards(mesh)
    if batch_size % (shards * accumulate):
        unit = shards * accumulate
        below = batch_size // unit * unit
        raise UserError(
            f"batch_size={batch_size} does not divide over {shards} data shards (mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}) in {accumulate} microbatches: "
            f"the nearest sizes that do, are "
            f"{' and '.join(str(size) for size in (below, below + unit) if size)}"
        )


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many shards of consecutive rows the mesh cuts a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


@functools.cache  # asked for at every batch
def batch_shards(mesh: Mesh) -> tuple[int, ...]:
    """Which shards of a batch this process's devices hold, in ascending order.

    Where "tensor" spans processes, all of these hold, and have to read, the same shards.
    """
    rows = (num_batch_shards(mesh),)
    held = NamedSharding(mesh, BATCH).addressable_devices_indices_map(rows).values()
    return tuple(sorted({index[0].indices(*rows)[0] for index in held}))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's shards of a batch, side by side, as global arrays on the mesh."""
    sharding = NamedSharding(mesh, BATCH)
    num_shards, held = num_batch_shards(mesh), len(batch_shards(mesh))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, array, (len(array) // held * num_shards, *array.shape[1:])
        )
        for name, array in batch.items()
    }
