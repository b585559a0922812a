"""Reading checkpoints: finding one, checking that it is the right one, placing its arrays.

A checkpoint is a directory with four items (see `xtra_jax.training.checkpoint` for where):

    state       parameters, optimizer state and step, as nested dicts with string keys
    position    where the data stream stands
    config      the whole config of the run
    metadata    what wrote the checkpoint, and in which format

The state does not record the classes it was made of, so it can be read without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from xtra_jax.errors import UserError
from xtra_jax.training.quiet import silence_checkpoint_libraries
from xtra_jax.training.storage import absolute, explained

FORMAT = {"format": "xtra_jax", "version": 1}

Names = tuple[str, ...]

silence_checkpoint_libraries()


def find_checkpoint(path: os.PathLike | str, step: int | None = None) -> epath.Path:
    """The directory of one complete checkpoint, given any of the paths that lead to it.

    Args:
        path: a run's working directory, its directory of checkpoints, or one checkpoint in it.
        step: which one; by default the newest.

    Raises:
        UserError: there is no such checkpoint, or it is not one that this version can read.
    """
    path = absolute(path)
    with explained(f"cannot read {path}"):
        if path.is_file():
            raise UserError(
                f"{path} is a file, and a checkpoint is a folder: of a file of weights, "
                f"`xtra import {path} --out FOLDER` makes one"
            )
        if path.name.isdigit() and (path / "state").exists():
            directory, steps = path.parent, [int(path.name)]
        else:
            directory = path / "checkpoints"
            directory = directory if directory.is_dir() else path
            steps = complete_steps(directory)
        if not steps:
            raise UserError(
                f"{path} holds no checkpoint: give the working directory of a run, its directory "
                "of checkpoints, or one checkpoint in it"
            )
        step = max(steps) if step is None else step
        if step not in steps:
            raise UserError(
                f"{path} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}"
            )
        _check_format(directory / str(step))
    return directory / str(step)


def complete_steps(directory: epath.Path) -> list[int]:
    """Steps of the complete checkpoints in a directory of checkpoints, in ascending order."""
    if not directory.exists():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))


def read_config(path: os.PathLike | str, step: int | None = None) -> dict:
    """The config saved in a checkpoint; `path` and `step` as in `find_checkpoint`."""
    return read_json(find_checkpoint(path, step), "config")


def restore_params(
    path: os.PathLike | str, abstract_params: Any = None, step: int | None = None
) -> Any:
    """Reads the parameters of a checkpoint, and nothing else of it.

    Args:
        path: as in `find_checkpoint`.
        abstract_params: the tree wanted, as in `read_state`; without it the parameters come
            back as nested dicts of NumPy arrays.
        step: which checkpoint; by default the newest.

    Raises:
        UserError: there is no such checkpoint, or it holds another model.
    """
    found = find_checkpoint(path, step)
    if abstract_params is None:
        with _damage_explained(found):
            saved = _saved_arrays(found)
            params = {name: leaf for name, leaf in saved.items() if name[0] == "params"}
            abstract_params = nested(params)["params"]
    return read_state(found, {"params": abstract_params}, partial=True)["params"]


def read_state(path: epath.Path, target: Any, *, partial: bool = False) -> Any:
    """Reads a checkpoint's state onto the shardings given.

    They may differ in every way from those it was saved with: other devices, another mesh,
    another number of processes.

    Args:
        path: of one checkpoint.
        target: pytree of `jax.ShapeDtypeStruct`. Leaves with a sharding come back as
            `jax.Array`, placed by it; those without as NumPy arrays.
        partial: read and check only the outermost keys that the target has.

    Returns:
        A pytree like the target.

    Raises:
        UserError: a leaf is missing on either side, or differs in shape or dtype.
    """
    wanted = by_name(target)
    with _damage_explained(path):
        saved = _saved_arrays(path)
        if partial:
            outermost = {name[0] for name in wanted}
            saved = {name: leaf for name, leaf in saved.items() if name[0] in outermost}
        _check_same_model(path, saved, wanted)
        restored = ocp.PyTreeCheckpointHandler().restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                item=nested(wanted),
                restore_args=nested({name: _placement(leaf) for name, leaf in wanted.items()}),
                partial_restore=True,
            ),
        )
    leaves = by_name(restored)
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in wanted])


def read_json(path: epath.Path, item: str) -> dict:
    """One of a checkpoint's JSON items."""
    with _damage_explained(path):
        return ocp.JsonCheckpointHandler().restore(path / item)


@contextmanager
def _damage_explained(path: epath.Path) -> Iterator[None]:
    """Turns whatever reading a damaged checkpoint raises into one `UserError`."""
    what = f"cannot read the checkpoint {path}"
    try:
        with explained(what):
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Orbax and TensorStore raise nearly anything on damaged files.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}: it is damaged ({reason[:200]}); another step of the run may be whole"
        ) from error


def by_name(tree: Any) -> dict[Names, Any]:
    """The leaves of a pytree by the names of the keys, fields and indices that lead to them."""
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(leaves: dict[Names, Any]) -> dict:
    """Nested dicts with string keys, of leaves as `by_name` returns them."""
    tree = {}
    for (*parents, last), leaf in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _check_format(path: epath.Path) -> None:
    try:
        written = read_json(path, "metadata")
    except (FileNotFoundError, ValueError):
        written = {}
    version = written.get("version")
    if written.get("format") != FORMAT["format"] or not isinstance(version, int):
        raise UserError(f"{path} is not a checkpoint that xtra_jax wrote")
    if version > FORMAT["version"]:
        raise UserError(
            f"{path} has checkpoint format {version}, and this xtra_jax reads up to "
            f"{FORMAT['version']}: install the version that wrote it, or a newer one"
        )


def _saved_arrays(path: epath.Path) -> dict[Names, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in by_name(
            ocp.PyTreeCheckpointHandler().metadata(path / "state").tree
        ).items()
    }


def _placement(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)


def _check_same_model(path: epath.Path, saved: dict, wanted: dict) -> None:
    """UserError that names the first array, parameters before others, that differs."""

    def described(array: jax.ShapeDtypeStruct | None) -> str:
        return "absent" if array is None else f"{array.dtype} {list(array.shape)}"

    if {name[0] for name in saved} == {"params"} != {name[0] for name in wanted}:
        raise UserError(
            f"{path} holds weights without the state of a run, as an import makes them: start a "
            "new run from them, with --config.init_from and another --workdir"
        )
    parts_there, parts_here = (
        {name[1] for name in names if name[0] == "params" and len(name) > 1}
        for names in (saved, wanted)
    )
    if parts_there == {"encoder"} and "predictor" in parts_here:
        raise UserError(
            f"{path} holds an encoder alone, as the file that it was imported from did, and a run "
            "starts from the weights of a whole model"
        )
    for name in sorted([*wanted, *saved], key=lambda name: name[0] != "params"):
        there, here = described(saved.get(name)), described(wanted.get(name))
        if there != here:
            raise UserError(
                f"{path} is a checkpoint of another model: {'/'.join(name)} is {there} there and "
                f"{here} here; use the config it was made with, or another working directory"
            )
