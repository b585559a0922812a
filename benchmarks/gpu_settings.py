"""What can be set of the train steps that the GPU benchmark times: ours and the peer's.

Without jax, so that what starts the cases leaves the GPU to them.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """One variant of our train step.

    Attributes:
        model: "h14", "b16", or "tiny", a toy for trying the benchmark.
        depth: encoder layers; 0 for the model's own.
        drop_path: "none", or a mode of stochastic depth, at the recipe's rate.
        drop_last_block: as pretraining runs; without it all 256 tokens are computed.
        whatif: "", or one of `gpu_whatif.CHANGES`, which ask what a part of the step costs.
    """

    model: str
    depth: int
    batch: int
    attention: str = "cudnn"
    scan: bool = False
    remat: str = "none"
    drop_path: str = "bernoulli"
    predictor_dtype: str = "bfloat16"
    reduce_dtype: str = "float32"
    mu_dtype: str = "float32"
    drop_last_block: bool = True
    whatif: str = ""


@dataclasses.dataclass(frozen=True)
class PeerSettings:
    """One variant of the PyTorch peer's step, which drops no paths.

    Attributes:
        model, depth, batch, drop_last_block: as of `Settings`.
        residual: "bfloat16", or "float32" as autocast leaves it: of the sum through the blocks.
        compiled: through `torch.compile`.
    """

    model: str
    depth: int
    batch: int
    drop_last_block: bool = True
    residual: str = "bfloat16"
    compiled: bool = True


_OF_KIND = {"step": Settings, "peer": PeerSettings}


def name_of(kind: str, settings: dict, flags: str = "") -> str:
    """The name of a case: all that was set and is not the default, so that each has its own."""
    defaults = {}
    if kind in _OF_KIND:
        defaults = {field.name: field.default for field in dataclasses.fields(_OF_KIND[kind])}
    told = [f"{key}={value}" for key, value in settings.items() if value != defaults.get(key)]
    return " ".join([kind, *sorted(told, key=_place), *([flags] if flags else [])])


def _place(told: str) -> tuple[int, str]:
    """The same order however settings were given: the model and its size first."""
    key = told.split("=")[0]
    first = ("model", "depth", "batch")
    return (first.index(key) if key in first else len(first), told)
