"""What the pictures show, in a line or two above each of them."""

from __future__ import annotations

from ml_collections import ConfigDict

from xtra_jax.inspection.classes import ClassCounts
from xtra_jax.inspection.inputs import Inputs


def training_data(data: ConfigDict) -> str:
    """What the training images are drawn from: data set, split, and which part or mixture."""
    parts = [data.dataset, data.train_split]
    if data.subset:
        parts.append(f"subset {data.subset}")
    if data.mixture:
        parts.append(f"mixed {':'.join(f'{share:g}' for share in data.mixture)}")
    return ", ".join(parts)


def about_classes(counts: ClassCounts, data: ConfigDict) -> list[str]:
    """What the picture of the classes shows."""
    noun = " class" if len(counts.names) == 1 else " classes"
    return [classes_line(counts, data, noun)]


def classes_line(counts: ClassCounts, data: ConfigDict, noun: str = "") -> str:
    """How many classes, how large they are, and by how many labels that is known."""
    if not counts.names:
        return "no labels"
    ranked = counts.ranked()
    (largest, most), (smallest, fewest) = ranked[0], ranked[-1]
    drawn = "" if counts.complete else f", by {counts.looked_at:,} images drawn at random"
    text = f"{len(counts.names):,}{noun}{drawn}: {most:,} images of {largest}"
    if counts.absent:
        text += f" down to none of {counts.absent:,} classes"
    else:
        text += f" down to {fewest:,} of {smallest}"
    if counts.unlabelled:
        text += f"; {counts.unlabelled:,} images have no label"
    if data.mixture:  # training sees the classes in other proportions
        text += "; counted by records, not by data.mixture"
    return text


def about_samples(inputs: Inputs) -> list[str]:
    """What the sheet of training samples shows."""
    data = inputs.config.data
    steps = [
        f"crops of {_range(data.crop_scale)} of the area, width over height "
        f"{_range(data.crop_ratio)}",
        f"mirrored with probability {data.flip:g}" if data.flip else "",
        f"RandAugment {data.randaugment}" if data.get("randaugment") else "",
        f"erased with probability {inputs.erasing:g} (blue frames)" if inputs.erasing else "",
    ]
    return [
        f"The first of {len(inputs.train):,} images ({training_data(data)}) that seed "
        f"{inputs.config.seed} begins with: {', '.join(step for step in steps if step)}.",
        _grid_line(inputs),
    ]


def about_evaluation(inputs: Inputs) -> list[str]:
    """What the sheet of evaluation samples shows."""
    data, transform = inputs.config.data, inputs.eval_transform
    return [
        f"Some of {len(inputs.evaluation):,} images ({data.eval_dataset or data.dataset}, "
        f"{data.eval_split}): short side resized to {transform.resize}, central "
        f"{transform.size} x {transform.size}.",
        _grid_line(inputs),
    ]


def about_crops(inputs: Inputs) -> list[str]:
    """What the sheet of crops shows."""
    augmented = " and after RandAugment" if inputs.config.data.get("randaugment") else ""
    return [
        "Left: the image, with the rectangles that are cut out. The first crop is the one that "
        f"the run begins with, the others are drawn as in later epochs; resized{augmented}."
    ]


def _grid_line(inputs: Inputs) -> str:
    grid = inputs.grid
    pixels = grid.block_size * grid.patch_size
    return (
        f"{grid.image_size} x {grid.image_size} pixels; orange lines part {grid.num_blocks} blocks "
        f"of {grid.block_size} x {grid.block_size} tokens, {pixels} x {pixels} pixels each; ticks "
        "part tokens."
    )


def _range(pair) -> str:
    low, high = pair
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
