"""Which parameter is split over which axis: an ordered table of path patterns, first match wins."""

from __future__ import annotations

import logging
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

# Attention is split over heads and the MLP over its hidden units (Megatron-LM), so that a layer
# needs one reduction per branch; fsdp takes the other large axis.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attention/qkv/kernel$", PartitionSpec("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias$", PartitionSpec(None, "tensor", None)),
    (r"attention/out/kernel$", PartitionSpec("tensor", None, "fsdp")),
    (r"fc1/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"fc1/bias$", PartitionSpec("tensor")),
    (r"fc2/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"patch_embed/kernel$", PartitionSpec(None, "fsdp")),
    (r"position$", PartitionSpec(None, "fsdp")),
    (r"(bias|scale|count|step)$", PartitionSpec()),
)


def path_name(path) -> str:
    """A key path of `jax.tree_util` as "a/b/c"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def fitted(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """`spec` without the axes that don't divide their dimension: that dimension is replicated."""
    return PartitionSpec(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )


def shardings(tree, mesh: Mesh, rules=RULES):
    """The sharding of every array of a pytree.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`, as from `jax.eval_shape`.

    Returns:
        The same tree of `NamedSharding`. Arrays that no rule names are replicated, and logged.
    """

    def of(path, leaf):
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))
        log.info("no sharding rule for %s %s: replicated", name, list(leaf.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
