"""How a model is computed, apart from what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

REMATS = ("none", "full", "dots")


def anywhere(x, kind: str):
    """The placement of activations that leaves it to the compiler."""
    del kind
    return x


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed. No field changes the parameters' layout, nor results but rounding.

    One exception: the random subsets of stochastic depth are drawn shard by shard, so that
    `batch_shards` decides which samples are in them.

    Attributes:
        attention: one of `attention.IMPLEMENTATIONS`, for the towers that it takes.
        scan_layers: one compiled layer scanned over the depth: a short program, which runs slower.
        remat: "full" recomputes layers in the backward pass, "dots" all but the matrix products of
            the linear layers, "none" nothing.
        reduce_dtype: "float32" or "bfloat16", in which the gradients of kernels are computed and,
            where the batch is split, summed over devices. What computes in float32 is summed in it
            anyway. Kernels' gradients are nearly all the bytes; all others are summed in float32.
        place: called on activations with their kind, "tokens" [rows, ..., width], "hidden" [rows,
            ..., hidden units] or "heads" [rows, ..., heads, head_dim], to say which device holds
            which part.
        batch_shards: into how many shards, of consecutive samples, devices split the batch.
        num_devices: that share the model or the batch.
    """

    attention: str = "xla"
    scan_layers: bool = False
    remat: str = "none"
    reduce_dtype: str = "float32"
    place: Callable = anywhere
    batch_shards: int = 1
    num_devices: int = 1
