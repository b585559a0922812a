"""What a run's working directory tells of a checkpoint: its losses, and what probes found."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import OpenCheckpoint
from xtra_jax.probing.results import best_head, find_results, read_results
from xtra_jax.training.telemetry import read_metrics


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The best head of one kind in the results of one data set.

    Attributes:
        file: its path below the folder of probes.
        kind: "attentive" or "linear".
        select: what the head was chosen on: "test", the images reported, or "heldout", a part of
            the training images.
        dataset, split: what the accuracy was measured on.
        step: of the checkpoint that was probed; None where that is not said.
        rate: the learning rate that was chosen.
        correct, total: images classified correctly, and images.
    """

    file: str
    kind: str
    select: str
    dataset: str
    split: str
    step: int | None
    rate: float
    correct: int
    total: int


@dataclasses.dataclass(frozen=True)
class History:
    """Of one checkpoint.

    Attributes:
        origin: whose encoder it is, by the tensor names it once had: "xtra", "vit" (timm, MAE), or
            "aim".
        with_probe: whether a trained head came with weights from elsewhere.
        step: the checkpoint's; None for a file of weights from elsewhere.
        losses: name of a loss to the last step up to the checkpoint's at which it was logged, and
            its value there.
        probes: by file name.
        unreadable: files of probe results that are none.
        imported: what `import.json` says, where the weights came from elsewhere.
    """

    origin: str = "xtra"
    with_probe: bool = False
    step: int | None = None
    losses: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    probes: tuple[ProbeResult, ...] = ()
    unreadable: tuple[str, ...] = ()
    imported: dict[str, Any] | None = None


def read_history(opened: OpenCheckpoint) -> History:
    """Everything that is known; what the working directory lacks is left out.

    Raises:
        UserError: it cannot be read.
    """
    run = opened.workdir
    step = int(opened.path.name) if opened.path.name.isdigit() else None
    if run is None or step is None:
        report = dataclasses.asdict(opened.report) if opened.report else {}
        return History(_origin(report), opened.read_probe is not None, step)
    losses: dict[str, tuple[int, float]] = {}
    if (run / "metrics.jsonl").exists():
        for line in read_metrics(run):
            for name in ("loss", "validation/loss"):
                if name in line and line["step"] <= step:
                    losses[name] = (int(line["step"]), line[name])
    probes: list[ProbeResult] = []
    unreadable = []
    folder = run / "probes"
    for file in find_results(folder):
        name = os.path.relpath(file, folder)
        try:
            probes.extend(_probe_results(file, name))
        except UserError:
            unreadable.append(name)
    imported = _imported(run)
    return History(
        _origin(imported or {}),
        (run / "probe.json").exists(),
        step,
        losses,
        tuple(probes),
        tuple(unreadable),
        imported,
    )


def _origin(report: Mapping[str, Any]) -> str:
    """Of weights with the report of an import; what an export of ours says of itself goes first."""
    said = report.get("metadata")
    origin = said.get("origin") if isinstance(said, Mapping) else None
    for layout in (origin, report.get("layout")):
        if layout in ("vit", "aim", "xtra"):
            return layout
    return "xtra"


def _imported(run: epath.Path) -> dict[str, Any] | None:
    report = run / "import.json"
    if not report.exists():
        return None
    try:
        found = json.loads(report.read_text())
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _probe_results(file: epath.Path, name: str) -> list[ProbeResult]:
    histories, provenance = read_results(file.parent)
    found = re.search(r", step (\d+)$", provenance.checkpoint)
    kinds = dict.fromkeys(history.kind for history in histories)
    return [
        ProbeResult(
            name,
            kind,
            provenance.select,
            provenance.dataset,
            provenance.config["data"]["eval_split"],
            int(found[1]) if found else None,
            best.setting.rate,
            best.test.correct,
            best.test.total,
        )
        for kind, best in ((kind, best_head(histories, kind)) for kind in kinds)
    ]
