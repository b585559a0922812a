"""The model card: what weights are, where they come from, how good they are, how to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xtra_jax.export.history import History
from xtra_jax.export.usage import usage
from xtra_jax.interop.open_checkpoint import OpenCheckpoint
from xtra_jax.probing.features import FeatureSpec

_PAPER = "[Amrani, Karlinsky, Bronstein, CVPR 2025](https://arxiv.org/abs/2411.15648)"
_WHAT = {
    "safetensors": "the whole pretraining model, with the tensor names of xtra_jax",
    "published": "the whole pretraining model, in the layout of the published PyTorch checkpoints",
    "timm": "the encoder, with the tensor names of timm's VisionTransformer",
    "stablehlo": "the encoder, as a program from images to features",
}
_WHOSE = {"vit": "timm's VisionTransformer and MAE", "aim": "AIM"}


def model_card(
    opened: OpenCheckpoint,
    provenance: Mapping[str, Any],
    history: History,
    files: Mapping[str, Mapping[str, Any]],
    features: FeatureSpec | None = None,
) -> str:
    """The card as Markdown.

    Args:
        provenance: as the manifest has it.
        files: name to `sha256` and `bytes` of every other file that is written so far.
        features: which ones a program gives; None for weights.
    """
    layout = provenance["layout"]
    what = _WHAT[layout]
    if not opened.whole:
        alone = "the encoder" if history.origin in _WHOSE else "the encoder of a pretraining model"
        what = what.replace("the whole pretraining model", alone)
    library = "timm" if layout == "timm" else "xtra_jax"
    sections = [
        ["---", f"library_name: {library}", "pipeline_tag: image-feature-extraction", "---"],
        [f"# {provenance['name']}"],
        [f"{_pretrained(history.origin)} This folder holds {what}."],
        ["## Model", "", *_model(opened, provenance)],
        ["## Training", "", *_training(opened, history)],
        ["## Probes", "", *_probes(opened, history)],
        ["## Use", "", usage(opened, provenance, files, features)],
        ["## Files", "", *_files(files, provenance)],
        ["## Config", "", "```json", json.dumps(opened.config.to_dict(), indent=2), "```"],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _pretrained(origin: str) -> str:
    if origin in _WHOSE:
        return (
            f"A vision transformer that came with the tensor names of {_WHOSE[origin]}; how it was "
            "pretrained is not known here."
        )
    return f"A vision transformer pretrained by predicting images block by block (XTRA, {_PAPER})."


def _model(opened: OpenCheckpoint, provenance: Mapping[str, Any]) -> list[str]:
    spec = opened.spec
    encoder, predictor, grid = spec.encoder, spec.predictor, spec.grid
    attends = "its own block and to all before it" if grid.num_blocks > 1 else "every other"
    rows = [
        ("images", f"{grid.image_size} x {grid.image_size} pixels, RGB"),
        ("tokens", f"{grid.num_tokens}, one per {grid.patch_size} x {grid.patch_size} pixels"),
        (
            "blocks",
            f"{grid.num_blocks}, of {grid.block_size} x {grid.block_size} tokens; a token attends "
            f"to {attends}",
        ),
        (
            "encoder",
            f"depth {encoder.depth}, width {encoder.width}, {encoder.num_heads} heads, MLP "
            f"{encoder.mlp_hidden}",
        ),
    ]
    if opened.whole and provenance["layout"] in ("safetensors", "published"):
        heads = spec.head.num_tokens
        rows += [
            ("projection", f"{encoder.width} to {predictor.hidden} to {predictor.width}"),
            (
                "predictor",
                f"depth {predictor.depth}, width {predictor.width}, {predictor.num_heads} heads",
            ),
            ("pixel heads", f"{heads}, hidden width {spec.head.hidden}"),
        ]
    rows += [
        ("parameters", f"{provenance['parameters']:,} in the files of this export"),
        ("dtype", provenance["dtype"]),
    ]
    return _table(("", ""), rows)


def _training(opened: OpenCheckpoint, history: History) -> list[str]:
    if opened.workdir is None:
        return _elsewhere(opened.path.name, {})
    if history.imported is not None:
        source = str(history.imported.get("source", "another file"))
        said = history.imported.get("metadata")
        return _elsewhere(source.rpartition("/")[2], said if isinstance(said, dict) else {})
    config = opened.config
    data, model = config.data, config.model
    length = f"{config.epochs:g} epochs" if config.epochs else f"{config.steps:,} steps"
    target = "pixels normalised block by block" if config.loss.norm_pix else "pixels"
    rows = [
        ("data", f"{data.dataset}, split {data.train_split}"),
        ("augmentation", f"crop scale {_pair(data.crop_scale)}, flip {data.flip:g}"),
        ("steps", f"{history.step:,}, of {config.batch_size:,} images"),
        ("planned length", length),
        (
            "optimizer",
            f"AdamW, learning rate {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}",
        ),
        ("objective", f"{config.loss.kind} of {target}, blocks in {model.order} order"),
    ]
    names = {"loss": "training loss", "validation/loss": "validation loss"}
    rows += [
        (names[name], f"{value:.6g} at step {step:,}")
        for name, (step, value) in history.losses.items()
    ]
    lines = _table(("", ""), rows)
    if not history.losses:
        lines += ["", "No losses are known: the working directory has no metrics of this step."]
    return lines


def _elsewhere(source: str, said: Mapping[str, Any]) -> list[str]:
    """Of weights that no run of this package made, as far as it knows."""
    lines = [
        f"The weights come from `{source}`. The config below describes the model; what it says of "
        "the training are defaults, unless that file brought a config along."
    ]
    if said:
        rows = [(str(key), str(value)[:200]) for key, value in said.items()]
        lines += ["", "The file says of itself:", "", *_table(("", ""), rows)]
    return lines


def _no_results(opened: OpenCheckpoint, history: History) -> str:
    if history.with_probe:
        return "A trained probe came with these weights; it is not part of this export."
    if opened.workdir is None or history.imported is not None:
        return "What probes have found on these weights is not known here."
    return "No probe was trained on these weights where they come from."


def _probes(opened: OpenCheckpoint, history: History) -> list[str]:
    lines = [f"`probes/{name}` holds no results of a probe." for name in history.unreadable]
    if not history.probes:
        return [*lines, _no_results(opened, history)]
    rows = []
    for probe in history.probes:
        step = "not said" if probe.step is None else f"{probe.step:,}"
        step += "" if probe.step == history.step else " (another checkpoint)"
        accuracy = f"{probe.correct / probe.total:.2%} ({probe.correct:,} of {probe.total:,})"
        where = f"{probe.dataset}, {probe.split}"
        rows.append((probe.kind, where, accuracy, f"{probe.rate:g}", step))
    head = ("probe", "images", "top-1 accuracy", "learning rate", "of step")
    chosen = {
        "test": "the images reported, as published",
        "heldout": "held-out training images",
    }
    where = " or ".join(chosen[how] for how in chosen if how in {p.select for p in history.probes})
    return [*lines, *_table(head, rows), "", f"The learning rate is the best one on {where}."]


def _files(files: Mapping[str, Mapping[str, Any]], provenance: Mapping[str, Any]) -> list[str]:
    rows = [(f"`{n}`", f"{f['bytes']:,}", f"`{f['sha256']}`") for n, f in files.items()]
    return [
        *_table(("file", "bytes", "SHA-256"), rows),
        "",
        f"From {provenance['checkpoint']}, by {provenance['written_by']}. SHA-256 of the weights, "
        f"whatever the layout, as float32: `{provenance['weights_sha256']}`. `manifest.json` has "
        "all of this for programs.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _pair(values: Sequence[float]) -> str:
    return " to ".join(f"{value:g}" for value in values)
