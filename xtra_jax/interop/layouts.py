"""Names that encoders of this architecture go by, and the way from them to the published ones.

Three layouts are known besides the published one of XTRA:

| layout | whose | names |
|---|---|---|
| `vit` | timm's VisionTransformer, MAE and its kin | `patch_embed.proj`, `blocks.0.norm1`, `norm` |
| `aim` | AIM | `preprocessor.patchifier.proj`, `trunk.blocks.0.norm_1`, `trunk.post_trunk_norm` |
| `xtra_jax` | this package's own safetensors | `encoder/layers/00/norm1/scale` |

Where such an encoder lacks a bias, zeros are the same function. Fixed sine-cosine positions become
the learned table that holds them. A class token has no place here: it is left out, and so is its
row of the positions, which changes the features of an encoder that was trained with one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from xtra_jax.errors import UserError
from xtra_jax.interop.ours import published_name_of

# What training frameworks put before every name.
_PREFIXES = ("_forward_module.", "_orig_mod.", "module.", "model.")

_VIT = [
    (r"patch_embed\.proj\.(weight|bias)", r"enc.patch_embed.proj.\1"),
    (r"pos_embed", r"enc.pos_embed"),
    (r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))", r"enc.\1"),
    (r"norm\.(weight|bias)", r"enc.norm.\1"),
]
_AIM = [
    (r"preprocessor\.patchifier\.proj\.(weight|bias)", r"enc.patch_embed.proj.\1"),
    (r"preprocessor\.pos_embed", r"enc.pos_embed"),
    (r"trunk\.(blocks\.\d+\.)norm_([12]\.(?:weight|bias))", r"enc.\1norm\2"),
    (
        r"trunk\.(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))",
        r"enc.\1",
    ),
    (r"trunk\.post_trunk_norm\.(weight|bias)", r"enc.norm.\1"),
    (r"head\.((?:cls_token|k\.|v\.|linear\.|bn\.).*)", r"classifier.\1"),
]
_XTRA = [(r"((?:enc|proj|predictor|aim_proj|classifier)\..+)", r"\1")]
_RULES = {"xtra": _XTRA, "vit": _VIT, "aim": _AIM}

# What is left out on purpose, and why.
_LEFT_OUT = {
    "vit": [
        (r"cls_token", "this encoder has no class token"),
        (r"mask_token|decoder_.*", "MAE's decoder"),
        (r"(head|head_drop)\..*", "the source's classifier"),
    ],
    "aim": [
        (r"preprocessor\.cls_token", "this encoder has no class token"),
        (r".*\.attn_mask", "a mask is no weight"),
        (r"head\..*", "AIM's pixel head"),
    ],
    "xtra": [(r"(.*\.)?(attn_)?mask", "a mask is no weight")],
}
_BIASES = re.compile(
    r"enc\.(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.bias"
)


@dataclasses.dataclass
class Named:
    """A file's tensors under their published names.

    Attributes:
        layout: "xtra", "vit", "aim" or "xtra_jax".
        sources: published name to the name in the file.
        left_out: name in the file to why it isn't used.
        unknown: names in the file that no rule knows.
    """

    layout: str
    sources: dict[str, str]
    left_out: dict[str, str]
    unknown: list[str]


def named(names: Iterable[str]) -> Named:
    """Recognises the layout of a file's names.

    Raises:
        UserError: it is none of those known, or two tensors have one name.
    """
    names = list(names)
    bare = {name: _without_prefix(name) for name in names}
    layout = _layout(set(bare.values()))
    if layout is None:
        first = ", ".join(names[:3])
        raise UserError(
            "its tensors are named as in no encoder that is known here (XTRA's enc.*, timm's and "
            f"MAE's blocks.*, AIM's trunk.blocks.*): they begin with {first[:200] or 'none'}"
        )
    found = Named(layout, {}, {}, [])
    for name, short in bare.items():
        target = _renamed(short, layout)
        if target is None:
            reason = _reason(short, layout)
            if reason is None:
                found.unknown.append(name)
            else:
                found.left_out[name] = reason
        elif target in found.sources:
            raise UserError(f"{found.sources[target]} and {name} are the same tensor twice")
        else:
            found.sources[target] = name
    if layout == "vit":
        _take_pooled_norm(found, bare)
    return found


def our_path(name: str) -> str:
    """One of our own names with slashes, as `flatten_dict(params, sep="/")` has them."""
    return name.replace(".", "/")


def _without_prefix(name: str) -> str:
    for _ in range(4):
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _layout(names: set[str]) -> str | None:
    if any(name.startswith(("encoder/", "encoder.")) for name in names):
        return "xtra_jax" if "encoder/patch_embed/kernel" in map(our_path, names) else None
    if any(name.startswith("enc.") for name in names):
        return "xtra"
    if any(name.startswith("trunk.blocks.") for name in names):
        return "aim"
    return "vit" if "patch_embed.proj.weight" in names else None


def _renamed(name: str, layout: str) -> str | None:
    if layout == "xtra_jax":
        return published_name_of().get(our_path(name))
    for pattern, target in _RULES[layout]:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(target)
    return None


def _reason(name: str, layout: str) -> str | None:
    for pattern, reason in _LEFT_OUT.get(layout, ()):
        if re.fullmatch(pattern, name):
            return reason
    return None


def _take_pooled_norm(found: Named, bare: Mapping[str, str]) -> None:
    """timm's `fc_norm` stands for the final norm in encoders that pool before it."""
    names = {short: name for name, short in bare.items()}
    for part in ("weight", "bias"):
        name = names.get(f"fc_norm.{part}")
        if name and f"enc.norm.{part}" not in found.sources:
            found.sources[f"enc.norm.{part}"] = name
            found.unknown.remove(name)


def zero_biases(layout: str, expected: Iterable[str], present: Iterable[str]) -> set[str]:
    """Biases that an encoder does without: of each kind, in all of its layers or in none.

    Args:
        expected: published names of all that this model has.
        present: published names of what the file has.
    """
    if layout not in ("vit", "aim"):
        return set()
    present = set(present)
    kinds: dict[str, list[str]] = {}
    for name in expected:
        if _BIASES.fullmatch(name):
            kinds.setdefault(re.sub(r"\d+\.", "", name, count=1), []).append(name)
    without = [members for members in kinds.values() if present.isdisjoint(members)]
    return {name for members in without for name in members}


def sincos_positions(tokens_per_side: int, width: int) -> np.ndarray:
    """The fixed positions of MAE and AIM: float32 [1, tokens, width], in raster order.

    The first half of the features tells the column, the second the row; in each half first the
    sines, then the cosines, at wavelengths from 2 pi to 2 pi 10^4 (Vaswani et al., 2017).
    """
    quarter = width // 4
    frequency = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = np.arange(tokens_per_side)[:, None] * frequency
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    side = (tokens_per_side, tokens_per_side, width // 2)
    columns, rows = np.broadcast_to(waves[None], side), np.broadcast_to(waves[:, None], side)
    table = np.concatenate([columns, rows], axis=-1)
    return table.reshape(1, -1, width).astype(np.float32)


def class_rows(rows: int, has_class_token: bool) -> int:
    """How many rows of a position table, at its start, belong to class tokens."""
    return 1 if has_class_token and math.isqrt(rows) ** 2 != rows else 0
