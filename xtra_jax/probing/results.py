"""What a study of probes found out, per head, and the folder it is kept in."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

import xtra_jax
from xtra_jax.errors import UserError
from xtra_jax.probing.sweep import Setting
from xtra_jax.training.storage import absolute, explained, write_text

RESULTS = "results.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # of which versions are kept


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One head after `step` steps.

    Attributes:
        step, epoch: completed steps, and the same in epochs.
        train_loss: mean training loss since the evaluation before.
        loss: mean cross-entropy over the evaluation examples, without label smoothing.
        correct: examples classified correctly.
        correct5: examples whose class is among the five most likely ones; None where there are at
          most five classes.
        total: examples; each counts once.
    """

    step: int
    epoch: float
    train_loss: float
    loss: float
    correct: int
    correct5: int | None
    total: int

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly, 0 to 1."""
        return self.correct / self.total

    @property
    def accuracy5(self) -> float | None:
        """Share of the examples whose class is among the first five, 0 to 1; see `correct5`."""
        return None if self.correct5 is None else self.correct5 / self.total


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """All evaluations of one head, in the order of training.

    Attributes:
        group: name of the group of heads that it belongs to, such as "attentive_last6".
        kind: attentive or linear.
        last_layers: how many of the encoder's last layers its features are the mean of.
        final_norm: whether the encoder's final LayerNorm was applied to them.
        setting: what is its own within the group.
        evaluations: on the examples that the best head is chosen by: those the accuracy is reported
          on, or a part of the training examples that was held out from training.
        test: after the last step, on the examples that the accuracy is reported on.
        class_correct, class_total: of `test`, int [classes].
    """

    group: str
    kind: str
    last_layers: int
    final_norm: bool
    setting: Setting
    evaluations: tuple[Evaluation, ...]
    test: Evaluation
    class_correct: np.ndarray
    class_total: np.ndarray

    @property
    def last(self) -> Evaluation:
        """The evaluation after the last step."""
        return self.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The most accurate evaluation; the earliest of equals."""
        return max(self.evaluations, key=lambda evaluation: evaluation.accuracy)

    @property
    def mean_per_class(self) -> float:
        """Accuracy on the reported examples, averaged over the classes that occur in them."""
        seen = self.class_total > 0
        return float(np.mean(self.class_correct[seen] / self.class_total[seen]))


def best_head(histories: Sequence[History], kind: str) -> History:
    """The head of a kind that ends most accurate; the first of equals.

    It goes by `evaluations`. Where these are of the reported examples, as for the published
    numbers, the choice is made on the examples that the accuracy is reported on: say so beside it.
    """
    members = [history for history in histories if history.kind == kind]
    return max(members, key=lambda history: history.last.accuracy)


def varies(histories: Sequence[History], value: Callable[[History], Hashable]) -> bool:
    """Whether heads of one kind differ in a value, so that there was something to choose."""
    found: dict[str, set] = {}
    for history in histories:
        found.setdefault(history.kind, set()).add(value(history))
    return any(len(values) > 1 for values in found.values())


def describe_group(history: History, among: Sequence[History]) -> str:
    """What a head shares with those of other learning rates, in words: "linear, last layer"."""
    layers = f"last {history.last_layers} layers" if history.last_layers > 1 else "last layer"
    parts = [history.kind, layers]
    if history.final_norm:
        parts.append("final norm")
    if varies(among, lambda other: other.setting.weight_decay):
        parts.append(f"weight decay {history.setting.weight_decay:g}")
    return ", ".join(parts)


def device_names() -> str:
    """The devices of this run, such as "8 x TPU v5e"."""
    kinds = [device.device_kind for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on, by name."""
    ours = {"python": platform.python_version(), "xtra_jax": xtra_jax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a study's numbers come from.

    Attributes:
        checkpoint: what was probed, without the path of a machine, such as "demo/12000".
        checkpoint_hash: SHA-256 of the encoder's weights, in hexadecimal.
        config: the whole config of the study, as JSON has it: nested dictionaries, lists.
        pretraining: that of the run which the encoder comes from.
        select: where the best head is chosen: "test", the reported examples, or "heldout", a part
          of the training examples that was held out.
        unreadable: reported examples that could not be decoded, which count nowhere.
        seconds: that the study took, its continuations included as far as they were saved: what
            passed between the last save and a kill is lost. Processes side by side count once.
        devices: see `device_names`.
        versions: see `versions`.
    """

    checkpoint: str
    checkpoint_hash: str
    config: dict[str, Any]
    pretraining: dict[str, Any]
    select: str
    unreadable: int
    seconds: float
    devices: str = dataclasses.field(default_factory=device_names)
    versions: dict[str, str] = dataclasses.field(default_factory=versions)

    def __post_init__(self):
        for name in ("config", "pretraining"):
            as_read_back = json.loads(json.dumps(getattr(self, name)))
            object.__setattr__(self, name, as_read_back)

    @property
    def dataset(self) -> str:
        """Name of the data set that the accuracy is reported on."""
        data = self.config["data"]
        return data.get("eval_dataset") or data["dataset"]


class Results(NamedTuple):
    """A complete study of one data set."""

    histories: tuple[History, ...]
    provenance: Provenance


def write_results(
    folder: os.PathLike | str, histories: Sequence[History], provenance: Provenance
) -> None:
    """Writes a study: results.json, and a file for every head in heads/.

    Accuracies are between 0 and 1. A loss that is not finite becomes null. results.json is written
    last, so that a folder with one is complete; each file is replaced as a whole or not at all.
    `table.write_tables` puts the tables and the picture beside them: call it first.

    Args:
        folder: where to; made where it is missing.
        histories: one per head.
    """
    folder = absolute(folder)
    kinds = dict.fromkeys(history.kind for history in histories)
    source = dataclasses.asdict(provenance)
    texts = {}
    for history in histories:
        texts[f"heads/{head_name(history)}.json"] = _json(_head(history) | {"provenance": source})
    texts[RESULTS] = _json(
        {
            "best": {kind: head_name(best_head(histories, kind)) for kind in kinds},
            "provenance": source,
            "heads": [_head(history) for history in histories],
        }
    )
    with explained(f"cannot write the results to {folder}"):
        (folder / "heads").mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)


def read_results(folder: os.PathLike | str) -> Results:
    """What `write_results` wrote. A loss that is null becomes NaN.

    Raises:
        UserError: there is no results.json, or it is none of a study's.
    """
    path = absolute(folder) / RESULTS
    with explained(f"cannot read {path}"):
        text = path.read_bytes()
    try:
        found = json.loads(text)
        results = Results(tuple(map(_history, found["heads"])), Provenance(**found["provenance"]))
        _check(results)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the file of a study of probes ({error!r})") from None
    return results


def find_results(probes: epath.Path, name: str = RESULTS) -> list[epath.Path]:
    """The files of a name below a run's folder of probes: those of one data set, then of several.

    A study of one data set is kept in `<study>/`, one of several in `<study>/<data set>/`.
    """
    if not probes.exists():
        return []
    return [*sorted(probes.glob(f"*/{name}")), *sorted(probes.glob(f"*/*/{name}"))]


def head_name(history: History) -> str:
    """Name of a head among those of its study, such as "attentive_last6_0.001_0.1"."""
    return f"{history.group}_{history.setting.rate:g}_{history.setting.weight_decay:g}"


def check_writable(path: str) -> None:
    """Makes the folder of a results file, before hours are spent on what goes into it.

    Raises:
        UserError: the file could not be written.
    """
    target = absolute(path)
    if target.is_dir():
        raise UserError(f"cannot write the results to {path}: it is a folder; name a file in it")
    probe = target.with_name(target.name + ".tmp")
    with explained(f"cannot write the results to {path}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _head(history: History) -> dict[str, Any]:
    return {
        "group": history.group,
        "kind": history.kind,
        "last_layers": history.last_layers,
        "final_norm": history.final_norm,
        **history.setting._asdict(),
        "last": _entry(history.last),
        "best": _entry(history.best),
        "test": _entry(history.test) | {"mean_per_class": history.mean_per_class},
        "class_correct": [int(count) for count in history.class_correct],
        "class_total": [int(count) for count in history.class_total],
        "evaluations": [_entry(evaluation) for evaluation in history.evaluations],
    }


def _entry(evaluation: Evaluation) -> dict[str, Any]:
    entry = dataclasses.asdict(evaluation)
    entry |= {"accuracy": evaluation.accuracy, "accuracy5": evaluation.accuracy5}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }


def _history(head: dict[str, Any]) -> History:
    return History(
        group=head["group"],
        kind=head["kind"],
        last_layers=head["last_layers"],
        final_norm=head["final_norm"],
        setting=Setting(head["rate"], head["weight_decay"]),
        evaluations=tuple(map(_evaluation, head["evaluations"])),
        test=_evaluation(head["test"]),
        class_correct=np.asarray(head["class_correct"]),
        class_total=np.asarray(head["class_total"]),
    )


def _check(results: Results) -> None:
    """ValueError where a file has the right names, and what stands there is no study."""
    histories, provenance = results
    if not histories:
        raise ValueError("no heads")
    for history in histories:
        if history.kind not in ("attentive", "linear"):
            raise ValueError(f"heads of kind {history.kind!r}")
        if not history.evaluations:
            raise ValueError("a head without evaluations")
        for entry in (*history.evaluations, history.test):
            if not 0 <= entry.correct <= entry.total or entry.total < 1:
                raise ValueError(f"{entry.correct} of {entry.total} examples correct")
        hits, sizes = history.class_correct, history.class_total
        if hits.ndim != 1 or hits.shape != sizes.shape or sizes.sum() < 1:
            raise ValueError("counts of the classes that do not go together")
    data = provenance.config["data"]
    for key in ("dataset", "eval_split"):
        if not isinstance(data[key], str):
            raise ValueError(f"data.{key} is {data[key]!r}")
    if not isinstance(provenance.pretraining["model"]["patch_size"], int):
        raise ValueError("no config of the pretraining")


def _evaluation(entry: dict[str, Any]) -> Evaluation:
    values = {field.name: entry[field.name] for field in dataclasses.fields(Evaluation)}
    for name in ("train_loss", "loss"):
        values[name] = math.nan if values[name] is None else values[name]
    return Evaluation(**values)
