"""What every command's --checkpoint takes, and the one function that opens it.

It is a run's working directory, one of its checkpoints, an imported checkpoint (which is one of
ours), or a file of weights from elsewhere, as `xtra import` reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from xtra_jax.config import load, model_spec, saved_config, validate
from xtra_jax.config_overrides import override
from xtra_jax.errors import UserError
from xtra_jax.interop.imported import Report
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.probes import (
    PUBLISHED_HEADS,
    PUBLISHED_LAYERS,
    Probe,
    read_probe,
)
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import abstract_params
from xtra_jax.training.checkpoint import find_checkpoint, read_config, restore_params
from xtra_jax.training.storage import absolute, explained

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_NO_MODEL = ("mask", "probe")  # names of files that lie beside a model's
# A probe's names in a file, XTRA's and AIM's. Its heads and layers leave no trace there, and what
# only needs the encoder must not fail for them.
_PROBE = (
    "*classifier.*",
    *(f"*head.{part}" for part in ("cls_token", "k.*", "v.*", "linear.*", "bn.*")),
)
_PASSED_OVER = "as asked for"  # the report's reason


@dataclasses.dataclass(frozen=True)
class OpenCheckpoint:
    """Weights, and the config that describes them.

    Attributes:
        path: the directory of one checkpoint, or the file.
        config: of the pretraining run; of a foreign file what was given or could be inferred.
        params: nested dicts of NumPy arrays, float32. `encoder` is always there, the rest of the
            model (`projection`, `predictor`, `heads`) together or not at all.
        report: what became of a file's tensors, where it is one; its probe is left out.
        read_probe: reads the trained head that a file holds beside its encoder; None without one.
    """

    path: epath.Path
    config: ConfigDict
    params: dict
    report: Report | None = None
    read_probe: Callable[[], Probe] | None = None

    @property
    def spec(self) -> XTRASpec:
        return model_spec(self.config)

    @property
    def whole(self) -> bool:
        """Whether the predictor is there too, or the encoder alone."""
        return len(self.params) > 1

    @property
    def workdir(self) -> epath.Path | None:
        """The working directory of the run that the checkpoint belongs to, if it does to one."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else None

    @property
    def name(self) -> str:
        """The checkpoint without the folders it lies in, which are this machine's own."""
        run = self.workdir
        return self.path.name if run is None else f"{run.name}, step {self.path.name}"

    def need_predictor(self, what: str) -> None:
        """UserError where the encoder is alone and `what` ("the loss") needs the whole model."""
        if not self.whole:
            raise UserError(
                f"{self.path} holds an encoder without its predictor, and {what} needs both: give "
                "a checkpoint of the whole pretraining model"
            )


def open_checkpoint(
    path: os.PathLike | str,
    *,
    config: str | ConfigDict = "",
    overrides: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> OpenCheckpoint:
    """Opens a checkpoint of ours, or a file of weights from elsewhere.

    Args:
        path: a run's working directory, its directory of checkpoints, one checkpoint in it, or a
            file.
        config: the pretraining config, as the command line names it or loaded; by default a
            checkpoint's own, and for a file what its tensors say.
        overrides: dotted keys with their values, on top of either config. With another
            `model.image_size` a checkpoint's position tables stay as they are, and are resized when
            they are used; a file has to have what its config says.
        settings: dotted keys with the caller's own defaults, which overrides go before.
        step: which checkpoint of a run; by default the newest.

    Raises:
        UserError: there is no such checkpoint, it cannot be read, or the config does not describe
            its weights.
    """
    if not os.fspath(path):
        raise UserError(
            "no checkpoint was named: give a run's working directory, one of its checkpoints, or "
            "a file of weights"
        )
    if isinstance(config, str) and config:
        config = _pretraining_config(config)
    found, report, reader = absolute(path), None, None
    with explained(f"cannot read {found}"):
        is_file = found.is_file()
        if not is_file:
            _refuse_other_folders(found)
    if is_file:
        if step is not None:
            raise UserError(f"step {step} was asked for, and {path} is a single file of weights")
        imported = import_weights(found, config or None, overrides, leave_out=_PROBE)
        params, described, report = imported.params, imported.config, imported.report
        if _PASSED_OVER in report.left_out:
            reader = partial(_probe_of_file, found, config or None, overrides)
    else:
        found = find_checkpoint(path, step)
        params, described = restore_params(found), config or saved_config(read_config(found))
    described = _overridden(described, settings or {}, overrides or {})
    params = jax.tree.map(_as_float32, params)
    _check_fits(found, params, described, own=not config)
    return OpenCheckpoint(found, described, params, report, reader)


def open_probe(checkpoint: OpenCheckpoint, folder: os.PathLike | str = "") -> Probe:
    """The trained head that came with an encoder.

    Args:
        folder: what `xtra import` made of a file with a probe, if not the checkpoint's own.

    Raises:
        UserError: there is none.
    """
    if folder:
        return read_probe(folder)
    if checkpoint.read_probe is not None:
        return checkpoint.read_probe()
    if checkpoint.workdir is None:
        raise UserError(f"{checkpoint.path} holds no probe (classifier.*): say where one is")
    return read_probe(checkpoint.workdir)


def _probe_of_file(path, config, overrides) -> Probe:
    """The head in a file of weights, as published ones are: the file doesn't tell all of it.

    Raises:
        UserError: it is another one.
    """
    try:
        return import_weights(path, config, overrides).probe
    except UserError as error:
        if "--probe_" not in str(error):
            raise
        raise UserError(
            f"the probe in {path} is not as published, with {PUBLISHED_HEADS} attention heads on "
            f"the mean of {PUBLISHED_LAYERS} layers: say what it has to `xtra import {path} --out "
            "DIR`, by --probe_heads and --probe_layers, and give DIR as the checkpoint"
        ) from error


def weights_sha256(params: Mapping[str, Any]) -> str:
    """SHA-256 of the names, shapes and float32 values of parameters.

    The same weights give the same digest, whatever file or directory they were read from.
    """
    digest = hashlib.sha256()
    for name, array in sorted(flatten_dict(dict(params), sep="/").items()):
        digest.update(f"{name} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _refuse_other_folders(path: epath.Path) -> None:
    """UserError where there is nothing, or a folder with files of weights in it."""
    if not path.exists():
        raise UserError(
            f"{path} holds no checkpoint, for it does not exist: give a run's working directory, "
            "one of its checkpoints, or a file of weights"
        )
    files = [
        file
        for file in sorted(path.iterdir())
        if file.suffix in _WEIGHTS and file.stem not in _NO_MODEL
    ]
    if files and not (path / "checkpoints").exists():
        meant = min(files, key=lambda file: (file.stem != "model", _WEIGHTS.index(file.suffix)))
        raise UserError(f"{path} holds no checkpoint: did you mean the file {meant}?")


def _pretraining_config(argument: str) -> ConfigDict:
    config = load(argument)
    if "probe" in config:
        raise UserError(
            f"{argument} is a probe config, and weights are described by a pretraining config, "
            "such as configs/pretrain/xtra_b16_in1k.py"
        )
    return config


def _overridden(
    config: ConfigDict, settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for key, value in {**settings, **overrides}.items():
        override(config, key, value)
    if settings or overrides:
        validate(config)
    return config


def _as_float32(array) -> np.ndarray:
    """Exact for bfloat16 and float16."""
    return np.asarray(array).astype(np.float32, copy=False)


def _check_fits(path: epath.Path, params: dict, config: ConfigDict, *, own: bool) -> None:
    """UserError that names the first tensor which the config's model has otherwise.

    Args:
        own: whether the config is the checkpoint's own, but for overrides.
    """
    expected = flatten_dict(abstract_params(model_spec(config)), sep="/")
    held = flatten_dict(params, sep="/")
    if set(params) == {"encoder"}:
        expected = {name: leaf for name, leaf in expected.items() if name.startswith("encoder/")}
    for name in sorted({*expected, *held}):
        here, there = (
            list(tree[name].shape) if name in tree else None for tree in (expected, held)
        )
        # A table of another square grid is resized when it is used.
        if name.endswith("/position") and here and there and here[1:] == there[1:]:
            continue
        if here != there:
            remedy = "leave its sizes as they are" if own else "name the one it was made with"
            raise UserError(
                f"{path} holds another model than its config describes: {name} is "
                f"{there or 'absent'} there and {here or 'absent'} in the config's model; {remedy}"
            )
