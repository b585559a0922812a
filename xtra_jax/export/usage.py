"""The part of a model card that says how to use what is in the folder, with code that works."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import jax

from xtra_jax.export.program import PROGRAM, SCRIPT, WEIGHTS, script
from xtra_jax.interop.open_checkpoint import OpenCheckpoint
from xtra_jax.model.grid import Grid
from xtra_jax.probing.features import FeatureSpec


def usage(
    opened: OpenCheckpoint,
    provenance: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    features: FeatureSpec | None,
) -> str:
    """Markdown; see `model_card`."""
    dtype = provenance["dtype"]
    data, size = opened.config.data, opened.spec.grid.image_size
    images = (
        f"Images come in as RGB, the short side resized to {data.eval_resize} pixels (bicubic) and "
        f"the central {size} x {size} cut out."
    )
    if features is None:
        images += (
            f" Values in [0, 1] are normalised by the mean {_triple(data.mean)} and the standard "
            f"deviation {_triple(data.std)} of the three channels."
        )
    text = {
        "safetensors": lambda: _safetensors(opened),
        "published": lambda: _published(opened, files),
        "timm": lambda: _timm(opened, dtype, provenance["origin"]),
        "stablehlo": lambda: _program(opened, dtype, files, features),
    }[provenance["layout"]]()
    return f"{images}\n\n{text}"


def described(features: FeatureSpec) -> str:
    """Which features, in words."""
    n = features.last_layers
    layers = "the last layer's output" if n == 1 else f"the outputs of the last {n} layers"
    norm = "after" if features.norm else "before"
    words = f"{layers}, {norm} the final LayerNorm"
    if n > 1:
        words += ", averaged" if features.average_layers else ", concatenated along the width"
    if features.pool:
        return f"{words}; mean over the tokens"
    return f"{words}; tokens in {'raster' if features.raster else 'block-raster'} order"


def _safetensors(opened: OpenCheckpoint) -> str:
    code = """\
        import json

        from safetensors import safe_open

        with safe_open("model.safetensors", framework="np") as file:
            config = json.loads(file.metadata()["config"])
            weights = {name: file.get_tensor(name) for name in file.keys()}
    """
    return (
        _python(code) + "\n\nA name is a path through the nested dicts that xtra_jax takes "
        "(`encoder/layers/00/mlp/fc1/kernel`). Kernels are [inputs, outputs]; those of queries, "
        "keys and values are [width, 3, heads, head width]. A patch is flattened as (row, column, "
        "channel), a block as its patches one after another. Position tables are in raster order. "
        + _mask_sentence(opened)
        + _back("model.safetensors")
    )


def _published(opened: OpenCheckpoint, files: Mapping[str, Any]) -> str:
    if "model.pt" in files:
        code = """\
            import torch

            weights = torch.load("model.pt", weights_only=True)["state_dict"]
        """
    else:
        code = """\
            import safetensors.torch

            weights = safetensors.torch.load_file("model.safetensors")
        """
    both = "" if len({"model.pt", "model.safetensors"} & set(files)) < 2 else (
        "\n\n`model.safetensors` holds the same tensors. `model.pt` has the config beside them, "
        "under `hyper_parameters`, as Lightning has it."
    )  # fmt: skip
    return (
        _python(code)
        + both
        + "\n\nThe names are those of the published checkpoints: `enc.*`, `proj.*`, `predictor.*` "
        "and `aim_proj.*`. Everything is channel-first: a target block is flattened as (channel, "
        "row, column), a block embedding as (width, row, column). Position tables are in raster "
        "order. Optimizer state is not included. "
        + _mask_sentence(opened)
        + _back("model.pt" if "model.pt" in files else "model.safetensors")
    )


def _timm(opened: OpenCheckpoint, dtype: str, origin: str) -> str:
    spec, data = opened.spec, opened.config.data
    size, grid, width = spec.grid.image_size, spec.grid, spec.encoder.width
    cast, normalised = "", "(images - mean) / std"
    if dtype != "float32":
        cast = f".to(torch.{dtype})"
        normalised = f"({normalised}){cast}"
    code = f"""\
        import safetensors.torch
        import timm
        import torch

        model = timm.create_model("local-dir:.", pretrained=True).eval(){cast}
        mask = safetensors.torch.load_file("mask.safetensors")["attention_mask"]

        images = torch.rand(2, 3, {size}, {size})  # RGB, in [0, 1]
        mean = torch.tensor({_triple(data.mean)}).view(3, 1, 1)
        std = torch.tensor({_triple(data.std)}).view(3, 1, 1)
        x = {normalised}

        with torch.no_grad():
            tokens = model.forward_features(x, attn_mask=mask)  # [2, {grid.num_tokens}, {width}]
            pooled = model(x, attn_mask=mask)  # [2, {width}], the mean of these tokens
            (last,) = model.forward_intermediates(
                x, indices=1, output_fmt="NLC", intermediates_only=True, attn_mask=mask
            )
            linear = last.mean(1)  # what linear probes are trained on: without the final LayerNorm
    """
    return (
        f"{_without_mask(grid, origin)} `mask.safetensors` holds the mask for tokens in raster "
        f"order, as timm keeps them, {grid.num_tokens} x {grid.num_tokens}, a row per token that "
        "attends: `attention_mask` is true where it may look, and `attention_bias` is the same as "
        "0 and -inf, for code that adds it to the logits of the attention.\n\n"
        + _python(code)
        + "\n\nThis was written for timm 1.0.31; a release whose `VisionTransformer.forward` has "
        "no `attn_mask` is too old. Elsewhere the model is constructed with `class_token=False`, "
        "`global_pool='avg'` and `fc_norm=False` and with `model_args` of `config.json`. "
        "`fc_norm=False` matters: otherwise timm puts the final LayerNorm behind the average "
        "pooling, and the norm of a mean is not the mean of norms."
    )


def _without_mask(grid: Grid, origin: str) -> str:
    if grid.num_blocks == 1:
        return (
            "All tokens are one block here, so the mask lets each attend to every other: timm's "
            "model gives the same features without it."
        )
    other = "which this encoder was never trained for"
    if origin != "xtra":
        other = "which gives other features than the mask"
    return (
        "**timm's model has no block causal mask: it must be given one at every call.** Without "
        f"`attn_mask` every token attends to every other, {other}, and nothing warns of it."
    )


def _program(
    opened: OpenCheckpoint,
    dtype: str,
    files: Mapping[str, Mapping[str, Any]],
    features: FeatureSpec,
) -> str:
    spec = opened.spec
    size, width = spec.grid.image_size, spec.encoder.width
    shape = ", ".join(["batch", *map(str, features.shape(0, spec.grid, width)[1:])])
    inside = WEIGHTS not in files
    where = "It holds the weights" if inside else f"Its weights are in `{WEIGHTS}`"
    mask = "applies the block causal mask, " if spec.grid.num_blocks > 1 else ""
    code = script(size, inside=inside, dtype=dtype)
    return (
        f"`{PROGRAM}` ({files[PROGRAM]['bytes']:,} bytes) was written by `jax.export`. It takes "
        f"uint8 images [batch, {size}, {size}, 3], any number of them, normalises them itself, and "
        f"gives float32 features [{shape}]: {described(features)}. {where}, {mask}"
        f"computes in {dtype}, and runs on cpu, cuda and tpu with `pip install jax "
        f"flatbuffers`:\n\n    python {SCRIPT} images.npy features.npy\n\nwhere `{SCRIPT}` is"
        "\n\n" + _python(code) + f"\n\nIt was written by jax {jax.__version__}; an older jax may "
        "not read it, and newer ones promise to for half a year at least."
    )


def _mask_sentence(opened: OpenCheckpoint) -> str:
    k = opened.spec.grid.block_size
    if opened.spec.grid.num_blocks == 1:
        return "All tokens are one block, and each attends to every other: there is no mask."
    where = "in the encoder and in the predictor" if opened.whole else "in the encoder"
    return (
        f"The block causal mask belongs to the model and is no tensor of it: blocks of {k} x {k} "
        "tokens are numbered in raster order, and a token attends to its own block and to those "
        f"before it, {where}, also when features are extracted."
    )


def _back(name: str) -> str:
    return (
        f"\n\nIn xtra_jax, `xtra_jax.load_encoder('{name}')` gives features, and every command's "
        f"`--checkpoint {name}` takes the file as it is."
    )


def _python(code: str) -> str:
    return f"```python\n{textwrap.dedent(code).rstrip()}\n```"


def _triple(values) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
