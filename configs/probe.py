"""Probes: the digits of the demo, and the fifteen benchmarks, as `configs/probe.py:NAME`.

`NAME` is the attentive probe, `NAME_linear` the linear probe as published for B/16 and
`NAME_linear_h14` the one for H/14, which augments and decays weights like an attentive probe. The
digits are one config, `digits`, with heads of both kinds. `all` is a study: the attentive probes of
all fifteen, one after another, or whatever `--config.datasets` names.

| name | classes | batch | warm-up epochs | rates | evaluated on |
|---|---|---|---|---|---|
| `imagenet2012` | 1000 | 4096 | 10 | L7 | validation |
| `i_naturalist2018` | 8142 | 4096 | 10 | L9, 1e-1 | validation |
| `cifar10` | 10 | 512 | 0 | L9 / 10 | test |
| `cifar100` | 100 | 512 | 0 | L9 / 10 | test |
| `food101` | 101 | 512 | 0 | L9 / 10 | test, which TFDS calls validation |
| `dtd` | 47 | 128 | 0 | L9 / 10 | test; trained on train and validation |
| `oxford_iiit_pet` | 37 | 128 | 0 | L9 / 10 | test |
| `cars196` | 196 | 128 | 0 | L9 / 10, 1e-2 | test |
| `iwildcam` | 182 | 512 | 0 | L9 / 10 | val of WILDS, out of distribution |
| `camelyon17` | 2 | 512 | 0 | L9 / 10 | val of WILDS, out of distribution |
| `patch_camelyon` | 2 | 4096 | 0 | L9 / 10 | validation |
| `rxrx1` | 1139 | 512 | 0 | L9 / 10 | val of WILDS, out of distribution |
| `eurosat` | 10 | 512 | 0 | L9 / 10 | the last fifth; TFDS has no test split |
| `fmow` | 62 | 512 | 0 | L9 / 10 | val of WILDS, out of distribution |
| `infograph` | 345 | 256 | 0 | L9 / 10, 1e-2 | test |
| `digits` | 10 | 128 | 0 | its own | test |

L7 is 1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, and L9 adds 8e-3 and 1e-2: the rates that the
published runs are named after. Where they have no warm-up, their scheduler starts at a tenth of the
named rate and only falls from there. The rates here are the effective ones, so a head that is
published as 1e-3 is 1e-4 here.
"""

from __future__ import annotations

from typing import NamedTuple

from configs import demo, probe_base

L7 = (1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3)
L9 = (*L7, 8e-3, 1e-2)


class Benchmark(NamedTuple):
    """One data set. `rates` are the named ones, `dataset` is the name unless it is given."""

    classes: int
    batch_size: int
    rates: tuple[float, ...] = L9
    warmup_epochs: float = 0.0
    eval_split: str = "test"
    train_split: str = "train"
    dataset: str = ""


BENCHMARKS = {
    "imagenet2012": Benchmark(1000, 4096, L7, 10.0, "validation"),
    "i_naturalist2018": Benchmark(8142, 4096, (*L9, 1e-1), 10.0, "validation"),
    "cifar10": Benchmark(10, 512),
    "cifar100": Benchmark(100, 512),
    "food101": Benchmark(101, 512, eval_split="validation"),
    "dtd": Benchmark(47, 128, train_split="train+validation"),
    "oxford_iiit_pet": Benchmark(37, 128),
    "cars196": Benchmark(196, 128, (*L9, 1e-1)),
    "iwildcam": Benchmark(182, 512, eval_split="val"),
    "camelyon17": Benchmark(2, 512, eval_split="val"),
    "patch_camelyon": Benchmark(2, 4096, eval_split="validation"),
    "rxrx1": Benchmark(1139, 512, eval_split="val"),
    # The published test split is not documented. TFDS stores all 27,000 images, shuffled, as train.
    "eurosat": Benchmark(
        10, 512, L9, 0.0, "train[80%:]", train_split="train[:80%]", dataset="eurosat/rgb"
    ),
    "fmow": Benchmark(62, 512, eval_split="val"),
    "infograph": Benchmark(345, 256, (*L9, 1e-1), dataset="domainnet/infograph"),
}
NAMES = (
    "digits",
    "all",
    *(name + suffix for name in BENCHMARKS for suffix in ("", "_linear", "_linear_h14")),
)


def get_config(name: str):
    config = probe_base.get_config()
    config.name = name
    if name == "all":
        config.datasets = ",".join(BENCHMARKS)
    elif name == "digits":
        _digits(config)
    else:
        _benchmark(config, name)
    return config


def effective_rates(benchmark: Benchmark) -> tuple[float, ...]:
    """The learning rates at which the published runs of these named rates really peak."""
    if benchmark.warmup_epochs:
        return benchmark.rates
    # Rounded, so that a tenth of 3e-4 reads 3e-05 and not 2.9999999999999997e-05.
    return tuple(round(rate / 10, 7) for rate in benchmark.rates)


def _benchmark(config, name: str):
    dataset, linear, suffix = name.partition("_linear")
    benchmark = BENCHMARKS[dataset]
    config.batch_size = benchmark.batch_size
    config.rates = effective_rates(benchmark)
    config.optim.warmup_epochs = benchmark.warmup_epochs
    config.data.dataset = benchmark.dataset or dataset
    config.data.train_split = benchmark.train_split
    config.data.eval_split = benchmark.eval_split
    config.data.num_classes = benchmark.classes
    if linear:
        config.kind = "linear"
    if linear and suffix != "_h14":
        config.weight_decays = (0.0,)
        config.data.update(randaugment="", erasing=0.0)


def _digits(config):
    """For the encoder of configs/demo.py: no augmentation, since a crop of a digit is another."""
    pretraining = demo.get_config()
    config.kind = "both"
    config.batch_size = 128
    config.epochs = 30.0
    config.eval_every = 55
    config.rates = (1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 3e-2, 6e-2, 1e-1, 2e-1)
    config.optim.warmup_epochs = 0.0
    config.probe.attentive_layers = (pretraining.model.depth,)
    config.data.update(
        dataset="digits",
        eval_split="test",
        num_classes=10,
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=0.0,
        randaugment="",
        erasing=0.0,
        num_workers=0,
        prefetch=2,
    )
