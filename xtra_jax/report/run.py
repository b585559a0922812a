"""Everything that a run's working directory tells of it, without the data it was trained on."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import from_dict, saved_config, total_steps
from xtra_jax.errors import UserError
from xtra_jax.probing.results import Results, find_results, read_results
from xtra_jax.training.checkpoint import checkpoint_directory, read_config
from xtra_jax.training.restore import complete_steps, find_checkpoint, read_json
from xtra_jax.training.storage import absolute, explained
from xtra_jax.training.telemetry import read_metrics

_TRAINING_FREE = ("few_shot.json", "knn.json")  # of probes that train nothing


@dataclasses.dataclass(frozen=True)
class Study:
    """Probes of one folder: of one data set, or of several in folders of their own.

    Attributes:
        name: of the folder, within the run's `probes`.
        results: by what the study calls its data sets.
    """

    name: str
    results: Mapping[str, Results]


@dataclasses.dataclass(frozen=True)
class Measured:
    """An accuracy of features that was measured without training.

    Attributes:
        dataset: what it was measured on.
        by: "20 nearest neighbours" or "5 of each class".
        features: of which layers.
        accuracy: 0 to 1, on this many `images`.
        checkpoint: whose features they are.
    """

    dataset: str
    by: str
    features: str
    accuracy: float
    images: int
    checkpoint: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        path: its working directory.
        saved: the config of its pretraining.
        config: the same, with the base's values for keys that did not exist when it began.
        steps: of its complete checkpoints, ascending.
        planned: how many steps it was to take; None where the number of its images is not known.
        metrics: what it logged, see `read_metrics`.
        position: of the data at the newest checkpoint: `examples`, and `records`, their digest.
        libraries: versions that wrote the newest checkpoint, by package.
        studies: what probes found out.
        measured: what `few_shot.json` and `knn.json` say of checkpoints.
        unreadable: files of studies that are none, each as a sentence.
        imported: what `import.json` says, where the weights came from elsewhere.
        bad_images: how many images it could not use.
    """

    path: epath.Path
    saved: ConfigDict
    config: ConfigDict
    steps: tuple[int, ...]
    planned: int | None
    metrics: list[dict[str, float]]
    position: Mapping[str, Any]
    libraries: Mapping[str, str]
    studies: tuple[Study, ...]
    measured: tuple[Measured, ...]
    unreadable: tuple[str, ...]
    imported: Mapping[str, Any] | None
    bad_images: int

    @property
    def step(self) -> int:
        """The last that is known of: of a checkpoint or of the metrics."""
        return max([0, *self.steps, *(int(line["step"]) for line in self.metrics)])

    def series(self, name: str) -> list[tuple[float, float]]:
        """A metric as (step, value)."""
        return [(line["step"], line[name]) for line in self.metrics if name in line]

    def names(self, prefix: str) -> list[str]:
        """The metrics that begin so, in the order in which they were first logged."""
        found = dict.fromkeys(name for line in self.metrics for name in line)
        return [name for name in found if name.startswith(prefix)]

    def times(self) -> tuple[datetime.datetime, datetime.datetime] | None:
        """When the first and the last metrics were logged, in UTC."""
        if not self.metrics:
            return None
        seconds = [line["time"] for line in self.metrics]
        return tuple(datetime.datetime.fromtimestamp(t, datetime.UTC) for t in _ends(seconds))


def read_run(path: os.PathLike | str) -> Run:
    """Reads a run.

    Raises:
        UserError: there is none, or what it needs cannot be read.
    """
    workdir = absolute(path)
    with explained(f"cannot read {workdir}"):
        if not workdir.is_dir():
            is_what = "is a file" if workdir.exists() else "does not exist"
            raise UserError(f"{workdir} {is_what}: give the working directory of a run")
        steps = tuple(complete_steps(checkpoint_directory(workdir)))
        has_config = (workdir / "config.json").exists()
    if not steps and not has_config:
        raise UserError(
            f"{workdir} holds no run: it has neither a config.json nor complete checkpoints; give "
            "the --workdir of `xtra pretrain`, `xtra demo` or `xtra import`"
        )
    newest = find_checkpoint(workdir) if steps else None
    saved = read_config(newest) if newest else _json(workdir / "config.json")
    config = saved_config(saved)
    position = read_json(newest, "position") if newest else {}
    metrics = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
    studies, damaged_studies = _studies(workdir / "probes")
    measured, damaged = _measured(workdir / "probes")
    imported = workdir / "import.json"
    return Run(
        path=workdir,
        saved=from_dict(saved),
        config=config,
        steps=steps,
        planned=_planned(config, position),
        metrics=metrics,
        position=position or {},
        libraries=(read_json(newest, "metadata") or {}).get("libraries", {}) if newest else {},
        studies=studies,
        measured=measured,
        unreadable=damaged_studies + damaged,
        imported=_json(imported) if imported.exists() else None,
        bad_images=_lines(workdir, "bad_images*.txt"),
    )


def _studies(folder: epath.Path) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    """Those of one data set, and those of several, each in the order of their names."""
    found: dict[str, dict[str, Results]] = {}
    unreadable = []
    with explained(f"cannot read {folder}"):
        files = find_results(folder)
    for file in files:
        alone = file.parent.parent == folder
        study = file.parent.name if alone else file.parent.parent.name
        try:
            results = read_results(file.parent)
        except UserError as error:
            unreadable.append(str(error))
            continue
        label = results.provenance.dataset if alone else file.parent.name
        found.setdefault(study, {})[label] = results
    return tuple(Study(name, results) for name, results in found.items()), tuple(unreadable)


def _measured(folder: epath.Path) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """Few-shot before k-NN, each in the order of their studies."""
    found, unreadable = [], []
    with explained(f"cannot read {folder}"):
        files = [file for name in _TRAINING_FREE for file in find_results(folder, name)]
    for file in files:
        try:
            found += _accuracies(_json(file))
        except UserError as error:
            unreadable.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = "not the file of a few-shot or nearest-neighbour evaluation"
            unreadable.append(f"{file} is {what} ({error!r})")
    return tuple(found), tuple(unreadable)


def _accuracies(found: Mapping[str, Any]) -> list[Measured]:
    data = found["config"]["data"]
    return [
        Measured(
            dataset=str(data.get("eval_dataset") or data["dataset"]),
            by=(
                f"{result['neighbours']} nearest neighbours"
                if "neighbours" in result
                else f"{result['shots']} of each class"
            ),
            features=str(result["features"]),
            accuracy=float(result["accuracy"]),
            images=int(found["test_images"]),
            checkpoint=str(found["checkpoint"]),
        )
        for result in found["results"]
    ]


def _planned(config: ConfigDict, position: Mapping[str, Any] | None) -> int | None:
    if config.steps:
        return config.steps
    examples = (position or {}).get("examples")
    return total_steps(config, examples) if examples else None


def _json(path: epath.Path) -> dict[str, Any]:
    with explained(f"cannot read {path}"):
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return found


def _lines(folder: epath.Path, pattern: str) -> int:
    with explained(f"cannot read {folder}"):
        return sum(len(file.read_text().splitlines()) for file in folder.glob(pattern))


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
