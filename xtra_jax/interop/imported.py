"""What was imported: weights with a word on every tensor, written as one of our checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from xtra_jax.config import model_spec
from xtra_jax.errors import UserError
from xtra_jax.interop.containers import summary
from xtra_jax.interop.probes import Probe, write_probe
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory, write_config
from xtra_jax.training.storage import absolute, explained, is_local, write_text

_LAYOUTS = {"xtra": "XTRA", "vit": "timm and MAE", "aim": "AIM", "xtra_jax": "xtra_jax"}


@dataclasses.dataclass
class Report:
    """What became of every tensor.

    Attributes:
        source: the file.
        container, layout: what kind of file, and whose names.
        used: tensors of the file that are parameters now, or of the probe.
        left_out: reason to the names in the file that it holds for.
        elsewhere: what else the file holds, such as optimizer state.
        missing: our parameters that the file does not have.
        filled: our parameters that were made, and of what.
        notes: what was assumed, or differs from the source's own model.
        metadata: what the file says of its run.
    """

    source: str
    container: str
    layout: str
    used: int = 0
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    missing: list[str] = dataclasses.field(default_factory=list)
    filled: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Imported:
    """Weights in our layout.

    Attributes:
        params: nested dicts, float32; `encoder`, and the rest of the model together or not at all.
        config: describes them; `head.num_tokens` is 0 for an encoder alone.
        probe: the head that the file had; None otherwise.
        report: what became of every tensor.
    """

    params: dict
    config: ConfigDict
    probe: Probe | None
    report: Report


def check_free(out: os.PathLike | str) -> None:
    """UserError if there is something where a checkpoint should be made."""
    target = absolute(out)
    if is_local(target):
        here, place = os.path.realpath(os.getcwd()), os.path.realpath(target)
        if os.path.commonpath([here, place]) == place:
            raise UserError(
                f"--out={out} is the current folder or holds it: name a folder other than that"
            )
    with explained(f"cannot write to {target}"):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} is there already: name another --out, or remove it")


def write_checkpoint(imported: Imported, out: os.PathLike | str) -> str:
    """Writes one of our checkpoints, as a run's working directory with a single step, 0.

    Beside `config.json` and `checkpoints/0` lie `import.json`, the report, and, where the file had
    a probe, `probe.safetensors` and `probe.json`.

    Args:
        out: the directory to make. On this machine it appears under its name when all is written.

    Returns:
        The directory.

    Raises:
        UserError: it is there already, or cannot be written.
    """
    target = absolute(out)
    local = is_local(target)
    place = target.with_name(f".{target.name}.{os.getpid()}.importing") if local else target
    what = f"cannot write the checkpoint to {target}"
    check_free(target)
    with explained(what):
        place.mkdir(parents=True)
    try:
        config = imported.config.to_dict()
        report = dataclasses.asdict(imported.report)
        with Checkpointer(checkpoint_directory(place), save_every=1, keep=1) as checkpointer:
            state = {"params": _in_place(imported.params)}
            position = {"imported_from": imported.report.source}
            checkpointer.save(0, state, position=position, config=config, force=True)
        write_config(place, config)
        if imported.probe:
            write_probe(imported.probe, place, {"imported_from": imported.report.source})
        with explained(what):
            write_text(place / "import.json", json.dumps(report, indent=2) + "\n")
            if local:
                if target.exists():
                    target.rmdir()
                place.rename(target)
    except BaseException:
        if local:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return os.fspath(target)


def _in_place(params: dict) -> dict:
    """The same memory as jax arrays: of NumPy's, Orbax would make a copy before it saves them."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # only an accelerator was asked for
        return params
    return jax.tree.map(lambda array: jax.device_put(array, cpu, may_alias=True), params)


def describe(imported: Imported, out: str) -> str:
    """What was imported, for people: a line per fact."""
    report, spec = imported.report, model_spec(imported.config)
    encoder = spec.encoder
    count = sum(array.size for array in flatten_dict(imported.params).values())
    kind = "encoder alone" if report.missing else "whole model"
    lines = [
        f"{report.source}: {report.container}, named as in {_LAYOUTS[report.layout]}",
        f"{kind}, {count:,} parameters from {report.used} tensors: width {encoder.width}, depth "
        f"{encoder.depth}, {encoder.num_heads} heads, patch {spec.grid.patch_size}, image "
        f"{spec.grid.image_size}, block {spec.grid.block_size}",
    ]
    if imported.probe:
        probe = imported.probe
        heads = f", {probe.num_heads} heads" if probe.num_heads else ""
        lines.append(f"probe: {probe.kind}, {probe.num_classes} classes{heads}")
    lines += [f"left out ({why}): {summary(names)}" for why, names in report.left_out.items()]
    if report.elsewhere:
        lines.append(f"left out (not weights): {', '.join(report.elsewhere)}")
    lines += [f"filled with {what}: {summary(names)}" for what, names in report.filled.items()]
    if report.missing:
        parts = ", ".join(report.missing)
        lines.append(f"missing: {parts}; good for features and probes, not for the loss")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"the checkpoint is in {out}")
    return "\n".join(lines)
