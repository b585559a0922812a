"""Configs: load a file with what the command line overrides, restore from JSON, compare.

A config file is Python with a function `get_config()` that returns an `ml_collections.ConfigDict`.
A file that knows several experiments also has `NAMES`, its function takes one of them, and it is
asked for as `configs/ablations.py:depth_1`.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from xtra_jax.config_overrides import (
    check_types,
    closest,
    did_you_mean,
    flatten,
    override,
    split_overrides,
    unknown_key,
)
from xtra_jax.config_rules import model_spec, validate
from xtra_jax.errors import UserError

__all__ = [
    "config_diff",
    "from_dict",
    "load",
    "model_spec",
    "saved_config",
    "split_overrides",
    "total_steps",
    "validate",
    "warmup_steps",
    "with_encoder_input",
]


def load(
    argument: str, overrides: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()
) -> ConfigDict:
    """Loads a config, applies overrides and checks the result.

    Args:
        argument: "path/to/file.py" or "path/to/file.py:NAME". Where the path does not exist, one
            that begins with `configs/` means the configs that come with the package.
        overrides: dotted keys with their values, as text (see `split_overrides`) or not.

    Returns:
        A valid config, locked: values can be changed, keys cannot be added.

    Raises:
        UserError: there is no such file or NAME, the file fails, a key is unknown, a value has the
            wrong type or is out of range.
    """
    path, colon, name = argument.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = argument, None
    config = _run_file(_find_file(path), path, name)
    _check_keys(config, path)
    config.lock()
    for key, value in dict(overrides).items():
        override(config, key, value)
    validate(config)
    return config


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """A locked config from nested dicts as JSON has them: lists become tuples."""

    def convert(value):
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(convert(values)).lock()


def saved_config(values: Mapping[str, Any]) -> ConfigDict:
    """The pretraining config of a run, from the nested dicts that were saved with it.

    Keys that are younger than the run have the base's values, which do what was done without them.
    """
    config = from_dict(values)
    with config.unlocked():
        _complete(config, _run_file(shipped_configs() / "base.py", "configs/base.py"))
    return config


def config_diff(a: ConfigDict, b: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, sorted, each with both values (None where missing)."""
    a, b = flatten(a), flatten(b)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if (key in a) != (key in b) or a[key] != b[key]
    }


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """The number of optimizer steps of a run over a training set of `num_examples`.

    Batches run on across the ends of epochs, so only the last, incomplete batch of the whole run
    is dropped.
    """
    if config.steps > 0:
        return config.steps
    steps = math.floor(config.epochs * num_examples / config.batch_size)
    if steps < 1:
        raise UserError(
            f"epochs={config.epochs:g} over {num_examples} training images is less than one step "
            f"of batch_size={config.batch_size}: use a smaller batch_size or more epochs"
        )
    return steps


def warmup_steps(config: ConfigDict, total: int) -> int:
    """How many of the `total` optimizer steps warm up: W of the published schedule."""
    optim = config.optim
    if optim.warmup_epochs > 0:
        given = f"optim.warmup_epochs={optim.warmup_epochs:g}"
        steps = int(optim.warmup_epochs / config.epochs * total)
    else:
        given = f"optim.warmup_steps={optim.warmup_steps}"
        steps = optim.warmup_steps
    if steps >= total:
        raise UserError(
            f"{given} is a warm-up of {steps} steps, and the whole run has {total}: it must be "
            "shorter than the run"
        )
    return steps


def with_encoder_input(probe: ConfigDict, pretraining: ConfigDict) -> ConfigDict:
    """Fills in what a probe takes over from its encoder's pretraining: how images come in.

    Args:
        probe: a probe config.
        pretraining: the config that the encoder was trained with.

    Returns:
        A copy of `probe` whose `data` has the image size and the evaluation resize, if they were
        left open, and the `mean` and `std` of the encoder's normalisation.

    Raises:
        UserError: another image size than the encoder's, without a resize to go with it.
    """
    filled = probe.copy_and_resolve_references()
    data, source = filled.data, pretraining.data
    size = pretraining.model.image_size
    with filled.unlocked():
        data.image_size = data.image_size or size
        if not data.eval_resize:
            if data.image_size != size:
                raise UserError(
                    f"data.image_size={data.image_size} is not the {size} of the encoder: say what "
                    "to resize to before the centre crop, with data.eval_resize"
                )
            data.eval_resize = source.eval_resize
        data.mean, data.std = source.mean, source.std
    validate(filled)
    return filled


def shipped_configs() -> Path:
    """The folder of the package's configs: in a checkout beside the package, else inside it."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _find_file(path: str) -> Path:
    file = Path(path)
    if not file.exists() and file.parts[:1] == ("configs",):
        file = shipped_configs().joinpath(*file.parts[1:])
    if file.is_dir():
        raise UserError(f"config {path!r} is a folder, and must be one Python file")
    if file.is_file():
        if file.suffix != ".py":
            raise UserError(f"config {path!r} is not a Python file: its name must end in .py")
        return file
    if not file.parent.is_dir():
        raise UserError(f"config {path!r} does not exist, nor does the folder it would be in")
    others = [other.name for other in file.parent.glob("*.py") if other.stem != "__init__"]
    meant = [str(Path(path).with_name(other)) for other in closest(file.name, others)[:1]]
    raise UserError(f"config {path!r} does not exist{did_you_mean(meant)}")


def _run_file(file: Path, path: str, name: str | None = None) -> ConfigDict:
    """Executes a config file and calls its get_config; `path` is what the user calls the file."""
    try:
        module = _import_file(file)
        make = getattr(module, "get_config", None)
        if make is None:
            raise UserError(f"config {path!r} has no get_config(), which must return the config")
        names = getattr(module, "NAMES", None)
        _check_name(path, name, names)
        config = make() if names is None else make(name)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"config {path!r} fails{_line_of(error, file)}: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of config {path!r} returns {type(config).__name__}, and must return an "
            "ml_collections.ConfigDict"
        )
    return config


def _import_file(file: Path) -> ModuleType:
    # `from configs import base` means the shipped configs, wherever the file lies and from
    # wherever the command is started.
    if "configs" not in sys.modules:
        folder = shipped_configs()
        sys.modules["configs"] = _module("configs", folder / "__init__.py", [str(folder)])
    module = _module(f"config_{file.stem}", file)
    module.__spec__.loader.exec_module(module)
    return module


def _module(name: str, file: Path, folders: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    return importlib.util.module_from_spec(spec)


def _check_name(path: str, name: str | None, names: Iterable[str] | None) -> None:
    if names is None:
        if name is not None:
            raise UserError(f"config {path!r} has no names to choose from: leave out ':{name}'")
        return
    if name is None:
        raise UserError(f"config {path!r} needs one of its names, {path}:NAME: {', '.join(names)}")
    if name not in names:
        near = closest(name, names)
        others = (other for other in names if other not in near)
        raise UserError(
            f"config {path!r} knows no {name!r}: it knows {', '.join([*near, *others])}"
        )


def _check_keys(config: ConfigDict, path: str) -> None:
    """Holds a file's keys and types against the base's: a misspelt key must not pass unseen."""
    base = "probe_base.py" if "probe" in config else "base.py"
    expected = flatten(_run_file(shipped_configs() / base, f"configs/{base}"))
    given = flatten(config)
    for key in given:
        if key not in expected:
            raise unknown_key(key, expected, where=f" in {path}")
    missing = [key for key in expected if key not in given]
    if missing:
        raise UserError(
            f"config {path!r} lacks {', '.join(missing)}: start from get_config() of "
            f"configs/{base}, which has every key"
        )
    check_types(given, expected, where=f"config {path!r}")


def _complete(config: ConfigDict, base: ConfigDict) -> None:
    for key, value in base.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict):
            _complete(config[key], value)


def _line_of(error: Exception, file: Path) -> str:
    """Where in the config file an error comes from, as far as that can be said."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""
