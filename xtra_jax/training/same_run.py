"""Whether a run can go on with a config: the same model, on the same batches."""

from __future__ import annotations

from ml_collections import ConfigDict

from xtra_jax.config import config_diff, saved_config
from xtra_jax.config_overrides import flatten
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError

# What decides which examples a step sees and what the model is: a run can't change it midway.
_FIXED = (
    "seed",
    "batch_size",
    "model.",
    "predictor.",
    "head.",
    "loss.",
    "optim.mu_dtype",
    "data.dataset",
    "data.train_split",
    "data.mixture",
    "data.subset",
)
# How the same numbers are computed may change.
_FREE = ("model.attention", "model.scan_layers", "model.remat", "model.drop_last_block")


def check_same_run(config: ConfigDict, saved: dict, workdir) -> list[str]:
    """UserError where the config would train another model, or on other batches, than the run.

    Returns:
        The other differences, in words.
    """
    changes = []
    known = flatten(saved)
    for key, (theirs, ours) in config_diff(saved_config(saved), config).items():
        folder = key == "data.data_dir" and config.data.dataset == "folder"
        fixed = folder or (key.startswith(_FIXED) and key not in _FREE)
        if key not in known and not fixed:  # it did not exist when the run began
            continue
        if fixed:
            raise UserError(
                f"{workdir} holds a run with {key}={theirs}, and the config now says {ours}: give "
                "another --workdir, or the config that the run began with"
            )
        changes.append(f"{key} {theirs} -> {ours}")
    return changes


def check_same_data(config: ConfigDict, position: dict, now: dict, workdir) -> None:
    """UserError where the training images are no longer those that the run began with.

    Args:
        position, now: of `data_position`, as it was saved and as it is.
    """
    if position["examples"] != now["examples"]:
        raise UserError(
            f"the run in {workdir} trains on {position['examples']} images, and "
            f"{config.data.dataset} now holds {now['examples']}: the order of its examples would "
            "change, so restore the data set or give another --workdir"
        )
    if position.get("records", now["records"]) != now["records"]:
        raise UserError(
            f"the images of {config.data.dataset} that the run in {workdir} trains on, or their "
            "order, are no longer the same: restore the data set and the list of a subset, or give "
            "another --workdir"
        )


def data_position(config: ConfigDict, step: int, source: Source) -> dict[str, int | str]:
    """Where the data stream stands after a step: what fixes its order, and its next sample."""
    return {
        "examples": len(source),
        "records": source.digest(),
        "seed": config.seed,
        "next_sample": step * config.batch_size,
    }
