"""Published probe heads (`classifier.*`): from their names to ours, and the files they are kept in.

Beside an imported checkpoint lie `probe.safetensors`, its tensors under names such as
`params/classifier/kernel` and `stats/tokens/mean`, and `probe.json`, which says what features the
probe takes. `read_probe` gives back what `xtra_jax.probing.heads` evaluates.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from xtra_jax.errors import UserError
from xtra_jax.interop.containers import read_tensors
from xtra_jax.training.storage import absolute, explained, write_text

PUBLISHED_HEADS = 16  # attention heads of the published attentive probes
PUBLISHED_LAYERS = 6  # last encoder layers whose mean they take

# Our path to the published name. A head has either all of a group or none of it.
_ATTENTIVE = {
    "params/query": "cls_token",
    "params/key/kernel": "k.weight",
    "params/value/kernel": "v.weight",
    "stats/tokens/mean": "bn.running_mean",
    "stats/tokens/var": "bn.running_var",
}
_KEY_AND_VALUE_BIAS = {"params/key/bias": "k.bias", "params/value/bias": "v.bias"}
_PLAIN = {"params/classifier/kernel": "linear.weight", "params/classifier/bias": "linear.bias"}
_NORMED = {
    "stats/pooled/mean": "linear.0.running_mean",
    "stats/pooled/var": "linear.0.running_var",
    "params/classifier/kernel": "linear.1.weight",
    "params/classifier/bias": "linear.1.bias",
}
_LINEAR = {"params/classifier/kernel": "weight", "params/classifier/bias": "bias"}
_LINEAR_NORMED = {
    "stats/features/mean": "0.running_mean",
    "stats/features/var": "0.running_var",
    "params/classifier/kernel": "1.weight",
    "params/classifier/bias": "1.bias",
}
_SHAPES = {
    "params/query": "1, queries, width",
    "params/key/kernel": "width, width",
    "params/value/kernel": "width, width",
    "params/classifier/kernel": "classes, width",
    "params/classifier/bias": "classes",
}


@dataclasses.dataclass(frozen=True)
class Probe:
    """A trained head.

    Attributes:
        kind: "attentive" or "linear".
        params, stats: as in `xtra_jax.probing.heads`, float32.
        num_heads: attention heads; 0 for a linear head.
        last_layers: how many of the encoder's last layers, before its final norm, it takes the mean
            of; the mean over tokens too, if linear.
    """

    kind: str
    params: dict
    stats: dict
    num_heads: int
    last_layers: int

    @property
    def num_classes(self) -> int:
        return self.params["classifier"]["kernel"].shape[1]


def probe_names(present: set[str]) -> dict[str, str] | None:
    """Our path to the published name, without "classifier.", of every tensor of a head.

    Args:
        present: the names that a file has, without "classifier.".

    Returns:
        None where they are of no head that is known. A bias of the last layer may be missing.
    """
    if "cls_token" in present:
        names = _ATTENTIVE | (_NORMED if "linear.1.weight" in present else _PLAIN)
        if not present.isdisjoint(_KEY_AND_VALUE_BIAS.values()):
            names |= _KEY_AND_VALUE_BIAS
    else:
        names = _LINEAR_NORMED if "1.weight" in present else _LINEAR
    bias = names["params/classifier/bias"]
    needed = set(names.values()) - {bias}
    return names if needed <= present else None


def make_probe(
    names: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    present: Mapping[str, tuple[int, ...]],
    *,
    width: int,
    depth: int,
    num_heads: int = PUBLISHED_HEADS,
    last_layers: int = PUBLISHED_LAYERS,
) -> Probe:
    """A head from published tensors.

    Args:
        names: from `probe_names`.
        read: gives the tensor of a published name.
        present: the published names there are, and their shapes.
        width, depth: of the encoder.
        num_heads, last_layers: of an attentive head; they leave no trace in its tensors.

    Raises:
        UserError: a shape does not fit the encoder or another tensor.
    """
    classes = 0
    flat = {}
    for path, name in sorted(names.items(), key=lambda item: not item[0].endswith("kernel")):
        if name not in present:  # AIM's classifier has no bias
            flat[path] = np.zeros(classes, np.float32)
            continue
        shape = present[name]
        if path == "params/classifier/kernel" and len(shape) == 2:
            classes = shape[0]
        expected = _SHAPES.get(path, "width")
        sizes = {"width": width, "classes": classes, "1": 1, "queries": 0}
        wanted = [sizes[word] for word in expected.split(", ")]
        fits = len(shape) == len(wanted) and all(
            size == want or not want for size, want in zip(shape, wanted, strict=True)
        )
        if not fits or not all(shape):
            raise UserError(
                f"classifier.{name} has shape {list(shape)}, and [{expected}] is expected "
                f"for an encoder of width {width}"
            )
        tensor = np.asarray(read(name)).astype(np.float32)
        flat[path] = tensor[0] if name == "cls_token" else np.ascontiguousarray(tensor.T)
    tree = unflatten_dict(flat, sep="/")
    attentive = "query" in tree["params"]
    if attentive and (num_heads < 1 or width % num_heads):
        raise UserError(
            f"--probe_heads={num_heads} does not divide the encoder's width {width}: say how many "
            "attention heads the probe has"
        )
    layers = last_layers if attentive else 1
    if not 1 <= layers <= depth:
        raise UserError(f"--probe_layers={layers}, and the encoder has {depth} layers")
    return Probe(
        "attentive" if attentive else "linear",
        tree["params"],
        tree.get("stats", {}),
        num_heads if attentive else 0,
        layers,
    )


def write_probe(probe: Probe, folder: os.PathLike | str, about: Mapping[str, Any]) -> None:
    """Writes `probe.safetensors` and `probe.json` into a folder that is there."""
    folder = absolute(folder)
    flat = flatten_dict({"params": probe.params, "stats": probe.stats}, sep="/")
    told = {
        "kind": probe.kind,
        "num_classes": probe.num_classes,
        "num_heads": probe.num_heads,
        "last_layers": probe.last_layers,
        **about,
    }
    with explained(f"cannot write the probe to {folder}"):
        save_file(flat, os.fspath(folder / "probe.safetensors"))
        write_text(folder / "probe.json", json.dumps(told, indent=2) + "\n")


def read_probe(folder: os.PathLike | str) -> Probe:
    """Reads the probe beside an imported checkpoint.

    Args:
        folder: the directory that `xtra import` made.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = absolute(folder)
    if not (folder / "probe.json").exists():
        raise UserError(f"{folder} holds no probe: import a file that has one (classifier.*)")
    tensors = read_tensors(os.fspath(folder / "probe.safetensors"))
    tree = unflatten_dict({name: tensors[name] for name in tensors}, sep="/")
    try:
        told = json.loads((folder / "probe.json").read_text())
        return Probe(
            told["kind"],
            tree["params"],
            tree.get("stats", {}),
            told["num_heads"],
            told["last_layers"],
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"the probe in {folder} is damaged: {error}") from error
