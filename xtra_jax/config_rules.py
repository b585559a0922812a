"""What a valid config is: choices, ranges, and values that must agree with each other.

A rule names its key and applies to every config that has it, of pretraining or of a probe. Whether
the sizes of a model fit together is for the model to say: its own specs check it when `model_spec`
builds them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from xtra_jax.config_overrides import as_text, closest, flatten
from xtra_jax.errors import UserError
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import (
    VARIANTS,
    EncoderSpec,
    HeadSpec,
    PredictorSpec,
    Variant,
    XTRASpec,
)
from xtra_jax.model.variants import variant as find_variant

# The model's own tuples are not imported for these: a config is read without loading jax.
CHOICES = {
    "model.variant": (*VARIANTS, "custom"),
    "model.order": ("raster", "pseudo_random"),
    "model.drop_path_mode": ("bernoulli", "subset"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "halves", "cudnn"),
    "model.remat": ("none", "full", "dots"),
    "predictor.dtype": ("float32", "bfloat16"),
    "loss.kind": ("mse", "l1"),
    "optim.reduce_dtype": ("float32", "bfloat16"),
    "optim.mu_dtype": ("float32", "bfloat16"),
    "kind": ("attentive", "linear", "both", "few_shot", "knn"),
    "select": ("test", "heldout"),
    "data.resize": ("exact", "fast", "device"),
    "data.randaugment": ("", "rand-m9-mstd0.5-inc1"),
}


def _all_different(values: tuple) -> bool:
    """Whether there is at least one value, and none twice."""
    return len(values) == len(set(values)) > 0


_AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
_NOT_NEGATIVE = ("0 or more", lambda value: value >= 0)
_POSITIVE = ("above 0", lambda value: value > 0)
_PROBABILITY = ("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_1 = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_AREAS = (
    "two numbers, lowest first, above 0 and at most 1",
    lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1,
)
_RATIOS = (
    "two numbers, lowest first, above 0",
    lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1],
)
_CHANNELS = (
    "three numbers from 0 to 1, one per channel",
    lambda values: len(values) == 3 and all(0 <= value <= 1 for value in values),
)
_SPREADS = (
    "three numbers above 0, one per channel",
    lambda values: len(values) == 3 and all(value > 0 for value in values),
)
_LAYERS = (
    "one or several whole numbers, at least 1, all different",
    lambda values: _all_different(values) and all(v >= 1 and v == int(v) for v in values),
)
_AXIS = ("at least 1, or -1 for all devices left", lambda value: value == -1 or value >= 1)

RANGES = {
    "seed": _NOT_NEGATIVE,
    "batch_size": _AT_LEAST_1,
    "accumulate": _AT_LEAST_1,
    "epochs": _NOT_NEGATIVE,
    "steps": ("from 0 to 2147483647, the largest int32", lambda value: 0 <= value < 2**31),
    "log_every": _AT_LEAST_1,
    "eval_every": _NOT_NEGATIVE,
    "save_every": _AT_LEAST_1,
    "keep_checkpoints": _AT_LEAST_1,
    "profile_at": _NOT_NEGATIVE,
    "rates": (
        "one or several numbers above 0, all different",
        lambda rates: _all_different(rates) and all(rate > 0 for rate in rates),
    ),
    "weight_decays": (
        "one or several numbers, 0 or more, all different",
        lambda decays: _all_different(decays) and all(decay >= 0 for decay in decays),
    ),
    "heldout_fraction": ("above 0 and below 1", lambda value: 0 < value < 1),
    "label_smoothing": _BELOW_1,
    "model.width": _NOT_NEGATIVE,
    "model.depth": _NOT_NEGATIVE,
    "model.num_heads": _NOT_NEGATIVE,
    "model.mlp_ratio": _NOT_NEGATIVE,
    "model.drop_path": _BELOW_1,
    "predictor.hidden": _AT_LEAST_1,
    "predictor.depth": _AT_LEAST_1,
    "head.hidden": _AT_LEAST_1,
    "probe.attentive_layers": _LAYERS,
    "probe.linear_layers": _LAYERS,
    "probe.final_norm": (
        "false, true or both",
        lambda values: _all_different(values) and set(values) <= {False, True},
    ),
    "probe.num_queries": _AT_LEAST_1,
    "probe.num_heads": _AT_LEAST_1,
    "probe.heads_at_once": _NOT_NEGATIVE,
    "optim.lr": _POSITIVE,
    "optim.warmup_lr": _NOT_NEGATIVE,
    "optim.end_lr": _NOT_NEGATIVE,
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.warmup_steps": _NOT_NEGATIVE,
    "optim.beta1": _BELOW_1,
    "optim.beta2": _BELOW_1,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "data.num_classes": ("at least 2", lambda value: value >= 2),
    "data.crop_scale": _AREAS,
    "data.crop_ratio": _RATIOS,
    "data.flip": _PROBABILITY,
    "data.erasing": _PROBABILITY,
    "data.image_size": _NOT_NEGATIVE,
    "data.eval_resize": _NOT_NEGATIVE,
    "data.mean": _CHANNELS,
    "data.std": _SPREADS,
    "data.mixture": (
        "numbers above 0, one for each data set, or empty",
        lambda shares: all(share > 0 for share in shares),
    ),
    "data.num_workers": ("0 or more, or -1 for as many as the cores", lambda value: value >= -1),
    "data.prefetch": _AT_LEAST_1,
    "data.bad_fraction": _PROBABILITY,
    "signals.every": _NOT_NEGATIVE,
    "signals.max_gib": _NOT_NEGATIVE,
    "cache.max_gib": _NOT_NEGATIVE,
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}


def validate(config: ConfigDict) -> None:
    """Checks everything that a config decides by itself, without data, devices or checkpoints.

    Raises:
        UserError: naming the first key whose value is wrong, and what would be right.
    """
    flat = flatten(config)
    for key, choices in CHOICES.items():
        if key in flat and flat[key] not in choices:
            near = closest(flat[key], choices)
            meant = f"did you mean {near[0]!r}? There are" if near else "there are"
            listed = ", ".join(map(repr, choices))
            raise UserError(f"{key}={flat[key]!r} is not a choice: {meant} {listed}")
    for key, (phrase, holds) in RANGES.items():
        if key in flat and not holds(flat[key]):
            raise UserError(f"{key}={as_text(flat[key])} must be {phrase}")
    _check_length(config)
    _check_mesh(config)
    if "probe" in config:
        _check_probe(config)
    else:
        _check_pretraining(config)


def model_spec(config: ConfigDict) -> XTRASpec:
    """The model that a pretraining config describes.

    Raises:
        UserError: sizes that do not fit: the patch into the image, the block into the grid, the
            attention heads into the width, the pixel heads into the number of blocks.
    """
    model, predictor = config.model, config.predictor
    if model.variant == "custom":
        for key in ("width", "depth", "num_heads"):
            if model[key] < 1:
                raise UserError(
                    f"model.{key}={model[key]}, and model.variant=custom needs it above 0"
                )
        sizes = Variant(model.width, model.depth, model.num_heads, mlp_ratio=4.0)
    else:
        sizes = find_variant(model.variant)
    encoder = EncoderSpec(
        grid=Grid(model.image_size, model.patch_size, model.block_size),
        width=model.width or sizes.width,
        depth=model.depth or sizes.depth,
        num_heads=model.num_heads or sizes.num_heads,
        mlp_ratio=model.mlp_ratio or sizes.mlp_ratio,
        drop_path=model.drop_path,
        drop_path_mode=model.get("drop_path_mode", "bernoulli"),  # older runs' configs lack it
    )
    return XTRASpec(
        encoder=encoder,
        predictor=PredictorSpec(
            predictor.hidden, predictor.width, predictor.depth, predictor.num_heads
        ),
        head=HeadSpec(config.head.hidden, config.head.num_tokens),
        dtype=model.dtype,
        predictor_dtype=predictor.dtype,
    )


def _check_length(config: ConfigDict) -> None:
    """How long the run is and how long it warms up: each in epochs or in steps."""
    epochs, steps, optim = config.epochs, config.steps, config.optim
    if epochs > 0 and steps > 0:
        warmup = " and optim.warmup_epochs=0" if optim.warmup_epochs else ""
        raise UserError(
            f"epochs={epochs:g} and steps={steps} are both given, and exactly one must be above 0: "
            f"with epochs=0{warmup} the run takes {steps} steps"
        )
    if epochs == 0 and steps == 0:
        raise UserError("epochs and steps are both 0, and exactly one must be above 0")
    if optim.warmup_epochs > 0 and optim.warmup_steps > 0:
        raise UserError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} and "
            f"optim.warmup_steps={optim.warmup_steps} are both given: one of them must be 0"
        )
    if steps > 0 and optim.warmup_epochs > 0:
        raise UserError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} needs a run measured in epochs, and this "
            f"one has steps={steps}: set it to 0 and use optim.warmup_steps"
        )


def _check_mesh(config: ConfigDict) -> None:
    open_axes = [f"mesh.{axis}" for axis, size in config.mesh.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(
            f"{' and '.join(open_axes)} are both -1, and only one axis can take the rest"
        )


def _check_probe(config: ConfigDict) -> None:
    if config.select == "heldout" and config.data.mixture:
        raise UserError(
            "select=heldout and data.mixture cannot be combined: a part of several data sets is "
            "held out from all of them together, so leave data.mixture empty"
        )


def _check_pretraining(config: ConfigDict) -> None:
    if config.batch_size % config.accumulate:
        raise UserError(
            f"batch_size={config.batch_size} is not a multiple of accumulate={config.accumulate}: "
            "every microbatch has the same size"
        )
    for key in ("warmup_lr", "end_lr"):
        if config.optim[key] > config.optim.lr:
            raise UserError(
                f"optim.{key}={config.optim[key]:g} must be at most the peak, "
                f"optim.lr={config.optim.lr:g}"
            )
    model_spec(config)
    signals = config.get("signals")  # runs of earlier versions have none
    if signals and signals.every:
        for key in ("dataset", "train_split", "eval_split"):
            if not signals[key]:
                raise UserError(
                    f"signals.every={signals.every}, and signals.{key} is empty: name a small "
                    "labelled data set and its splits, or set signals.every=0"
                )
    if config.data.eval_resize < config.model.image_size:
        raise UserError(
            f"data.eval_resize={config.data.eval_resize} is smaller than "
            f"model.image_size={config.model.image_size}, which is cropped from it"
        )
    if config.model.attention == "cudnn" and config.model.dtype == "float32":
        raise UserError("model.attention=cudnn needs 16 bits: set model.dtype=bfloat16")
