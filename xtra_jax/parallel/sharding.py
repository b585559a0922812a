"""Which parameter is split over which axis: an ordered table of path patterns, first match wins."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtra_jax.parallel.mesh import BATCH_AXES

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


def rule_of(name: str, rules=RULES) -> PartitionSpec | None:
    """The spec of the first rule whose pattern is found in an array's name; None if none is."""
    return next((spec for pattern, spec in rules if re.search(pattern, name)), None)


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
        spec = rule_of(name, rules)
        if spec is None:
            log.warning("no sharding rule for %s %s: replicated", name, list(leaf.shape))
            spec = PartitionSpec()
        return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(of, tree)


def left_whole(tree, mesh: Mesh, rules=RULES) -> dict[str, list[str]]:
    """What a rule would split if the mesh's axis divided it.

    Returns:
        The names of such arrays by mesh axis, with one "*" for the layers of a stack.
    """
    found: dict[str, dict[str, None]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        for axis, size in zip(rule_of(name, rules) or (), leaf.shape, strict=False):
            if axis and size % mesh.shape[axis]:
                found.setdefault(axis, {})[re.sub(r"layers/\d+", "layers/*", name)] = None
    return {axis: list(names) for axis, names in found.items()}


# The axis of activations that is split over "tensor", by their kind.
_SPLIT = {"tokens": None, "hidden": -1, "heads": -2}


def activation_placement(mesh: Mesh) -> Callable:
    """Says of activations that every device holds those of its own images.

    Without it, the compiler may as well leave parameters where they are and send activations
    around; with it, what is sent is the parameters of fsdp, and the partial sums of tensor.

    Returns:
        A function of activations [rows, ...] and their kind: "tokens" [rows, ..., width], "hidden"
        [rows, ..., hidden units], "heads" [rows, ..., heads, head_dim].
    """

    def place(x, kind: str):
        spec = [BATCH_AXES, *[None] * (x.ndim - 1)]
        split = _SPLIT[kind]
        if split is not None and x.shape[split] % mesh.shape["tensor"] == 0:
            spec[split] = "tensor"
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return place


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
