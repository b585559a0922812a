"""What others report beside a probe's accuracy: published numbers, and each data set's convention.

The numbers are those of XTRA (Amrani, Karlinsky, Bronstein, CVPR 2025, arXiv:2411.15648) and of the
methods that it compares with, in percent: the best learning rate of a list, chosen on the reported
split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xtra_jax.model.variants import VARIANTS, Variant


class Published(NamedTuple):
    """One published accuracy. `encoder` is its size and patch, `accuracy` in percent."""

    method: str
    encoder: str
    dataset: str
    kind: str
    accuracy: float


_IMAGENET = "imagenet2012"
PUBLISHED = (
    Published("XTRA", "B/16", _IMAGENET, "attentive", 76.8),
    Published("XTRA", "B/16", _IMAGENET, "linear", 70.2),
    Published("MAE", "B/16", _IMAGENET, "attentive", 74.6),
    Published("MAE", "B/16", _IMAGENET, "linear", 68.0),
    Published("data2vec", "B/16", _IMAGENET, "attentive", 74.5),
    Published("data2vec", "B/16", _IMAGENET, "linear", 67.3),
    Published("AIM", "B/16", _IMAGENET, "attentive", 73.5),
    Published("AIM", "B/16", _IMAGENET, "linear", 67.4),
    Published("I-JEPA", "B/16", _IMAGENET, "attentive", 72.6),
    Published("I-JEPA", "B/16", _IMAGENET, "linear", 65.7),
    Published("XTRA", "H/14", _IMAGENET, "attentive", 80.9),
)
# The fifteen benchmarks: the splits that probes are trained and reported on.
BENCHMARKS = {
    "imagenet2012": ("train", "validation"),
    "i_naturalist2018": ("train", "validation"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "food101": ("train", "validation"),
    "dtd": ("train+validation", "test"),
    "oxford_iiit_pet": ("train", "test"),
    "cars196": ("train", "test"),
    "iwildcam": ("train", "val"),
    "camelyon17": ("train", "val"),
    "patch_camelyon": ("train", "validation"),
    "rxrx1": ("train", "val"),
    "eurosat/rgb": ("train[:80%]", "train[80%:]"),
    "fmow": ("train", "val"),
    "domainnet/infograph": ("train", "test"),
}
# The means of their attentive top-1, by size and patch of the encoder.
PUBLISHED_AVERAGES = {
    "H/14": {
        "XTRA-H/14": 76.2,
        "MAE-H/14": 75.3,
        "AIM-0.6B on DFN-2B+": 75.6,
        "AIM-0.6B on DFN-2B": 74.5,
    },
}
_IMAGE_SIZES = (224, 256)  # pixels per side, of the published encoders

# Conventionally the mean of the classes' accuracies: so do SimCLR (Chen et al., 2020,
# arXiv:2002.05709, appendix B) and CLIP (Radford et al., 2021, arXiv:2103.00020, appendix A), which
# report top-1 on the others of ours that they have. XTRA reports top-1 everywhere, as VTAB does.
_MEAN_PER_CLASS = ("oxford_iiit_pet",)
# What WILDS (Koh et al., 2021, arXiv:2012.07421) reports for its sets, where counts of right
# answers per class don't tell it.
_NOT_COMPUTED = {
    "iwildcam": "macro F1",
    "fmow": "the accuracy of the worst region",
}
_ENCODERS = {"base": "B", "large": "L", "huge": "H"}


def encoder_name(pretraining: Mapping[str, Any]) -> str:
    """Size and patch of the encoder of a pretraining config, such as "B/16"; "" for others."""
    model = pretraining.get("model", {})
    named = VARIANTS.get(model.get("variant"), Variant(0, 0, 0, 4.0))
    sizes = Variant(*(model.get(field) or getattr(named, field) for field in Variant._fields))
    letter = next((of for name, of in _ENCODERS.items() if VARIANTS[name] == sizes), "")
    return f"{letter}/{model['patch_size']}" if letter else ""


def benchmark_of(data: Mapping[str, Any]) -> str:
    """The benchmark that a probe took part in as published, by its `data` config; "" for others.

    It is one that was trained on all of the benchmark's training images and reported on its split,
    in images of a published size. Those held out to choose the head by count as trained on.
    """
    name = set_name(data["dataset"])
    splits = (data.get("train_split"), data.get("eval_split"))
    same = (data.get("eval_dataset") or data["dataset"]) == data["dataset"]
    whole = same and not data.get("subset")
    sized = data.get("image_size") in _IMAGE_SIZES
    return name if whole and sized and BENCHMARKS.get(name) == splits else ""


def published(benchmark: str, kind: str, encoder: str) -> list[Published]:
    """Published accuracies of a benchmark, kind of probe and encoder, XTRA's own first."""
    return [p for p in PUBLISHED if (p.dataset, p.kind, p.encoder) == (benchmark, kind, encoder)]


def reports_mean_per_class(dataset: str) -> bool:
    """Whether a data set's accuracy is conventionally averaged over its classes."""
    return set_name(dataset) in _MEAN_PER_CLASS


def not_computed(dataset: str) -> str | None:
    """The measure that a data set is conventionally reported with, where a study lacks it."""
    return _NOT_COMPUTED.get(set_name(dataset))


def set_name(dataset: str) -> str:
    """A data set's name without its version and the size that its images were shrunk to."""
    return dataset.partition(":")[0].partition("/max_side_")[0]
