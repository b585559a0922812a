"""The table over data sets: what the best head of each kind reached, and how sure that is."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence

from xtra_jax.probing import reference
from xtra_jax.probing.bootstrap import DRAWS, accuracy_interval, mean_per_class_interval
from xtra_jax.probing.plots import draw_rates
from xtra_jax.probing.results import Results, best_head, varies
from xtra_jax.training.storage import absolute, explained, write_bytes, write_text

_SPECIAL = str.maketrans({"|": r"\|", "*": r"\*", "`": r"\`", "<": "&lt;", "\n": " "})


@dataclasses.dataclass(frozen=True)
class Row:
    """The best head of one kind on one data set. Accuracies and intervals go from 0 to 1.

    Attributes:
        label: what the study calls the data set.
        dataset, split: what the accuracy was measured on.
        kind: attentive or linear.
        select: what the head was chosen on, "test" or "heldout".
        rate, weight_decay, last_layers, final_norm: the chosen head's.
        num_rates: how many learning rates there were to choose from.
        edge: "lowest" or "highest" where the chosen rate is the end of that list, else "".
        selected_accuracy: on the examples that the head was chosen on.
        accuracy, interval: top-1 on the reported examples, with its 95 % bootstrap interval.
        accuracy5: top-5; None where there are at most five classes.
        mean_per_class, mean_per_class_interval: where that is the data set's convention, else None.
        benchmark: what it took part in as published, see `reference.benchmark_of`, else "".
        encoder: size and patch, such as "B/16", else "".
        published: top-1 in percent that XTRA reports for such an encoder there, if it does.
        total, unreadable: reported examples, and those that could not be decoded.
    """

    label: str
    dataset: str
    split: str
    kind: str
    select: str
    rate: float
    weight_decay: float
    last_layers: int
    final_norm: bool
    num_rates: int
    edge: str
    selected_accuracy: float
    accuracy: float
    interval: tuple[float, float]
    accuracy5: float | None
    mean_per_class: float | None
    mean_per_class_interval: tuple[float, float] | None
    benchmark: str
    encoder: str
    published: reference.Published | None
    total: int
    unreadable: int


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as a person reads it: the same cells in Markdown and in a page.

    Attributes:
        header: of the columns.
        lines: cells [rows, columns].
        notes: sentences on how to read it.
    """

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """In columns that a person can read as text too."""
        rows = [[cell.translate(_SPECIAL) for cell in row] for row in (self.header, *self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        header, *lines = (
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in rows
        )
        rule = "| " + " | ".join("-" * width for width in widths) + " |"
        notes = [f"- {note.translate(_SPECIAL)}" for note in self.notes]
        return "\n".join([header, rule, *lines, "", *notes]) + "\n"


def write_tables(folder: os.PathLike | str, studies: Mapping[str, Results]) -> None:
    """Writes table.md, table.csv and rates.png, for one data set or several.

    Args:
        folder: where to; made where it is missing.
        studies: by what table and picture call their data sets.

    Raises:
        UserError: they cannot be written.
    """
    folder = absolute(folder)
    with explained(f"cannot write the tables to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "table.md", make_table(studies).markdown())
        write_text(folder / "table.csv", as_csv(studies))
        write_bytes(folder / "rates.png", draw_rates(studies))


def make_rows(studies: Mapping[str, Results]) -> list[Row]:
    """A row for each kind of head of each study.

    Args:
        studies: by what the table calls their data sets.
    """
    return [
        make_row(label, results, kind)
        for label, results in studies.items()
        for kind in dict.fromkeys(history.kind for history in results.histories)
    ]


def make_row(label: str, results: Results, kind: str) -> Row:
    """The best head of a kind."""
    histories, provenance = results
    best = best_head(histories, kind)
    rates = sorted({history.setting.rate for history in histories if history.kind == kind})
    dataset, test = provenance.dataset, best.test
    per_class = reference.reports_mean_per_class(dataset)
    benchmark = reference.benchmark_of(provenance.config["data"])
    encoder = reference.encoder_name(provenance.pretraining)
    published = reference.published(benchmark, kind, encoder)
    return Row(
        label=label,
        dataset=dataset,
        split=provenance.config["data"]["eval_split"],
        kind=kind,
        select=provenance.select,
        rate=best.setting.rate,
        weight_decay=best.setting.weight_decay,
        last_layers=best.last_layers,
        final_norm=best.final_norm,
        num_rates=len(rates),
        edge=edge_of(rates, best.setting.rate),
        selected_accuracy=best.last.accuracy,
        accuracy=test.accuracy,
        interval=accuracy_interval(test.correct, test.total),
        accuracy5=test.accuracy5,
        mean_per_class=best.mean_per_class if per_class else None,
        mean_per_class_interval=(
            mean_per_class_interval(best.class_correct, best.class_total) if per_class else None
        ),
        benchmark=benchmark,
        encoder=encoder,
        published=published[0] if published else None,
        total=test.total,
        unreadable=provenance.unreadable,
    )


def edge_of(rates: Sequence[float], rate: float) -> str:
    """Which end of a list of learning rates one is, if any: a better one may lie beyond it."""
    if len(set(rates)) < 2 or min(rates) < rate < max(rates):
        return ""
    return "lowest" if rate == min(rates) else "highest"


def make_table(studies: Mapping[str, Results]) -> Table:
    """The table over data sets. Columns that would say the same in every row are left out."""
    rows = make_rows(studies)
    settings = [h for results in studies.values() for h in results.histories]
    columns = {
        "data set": [row.label for row in rows],
        "probe": [row.kind for row in rows],
        "top-1 %": [_percent(row.accuracy) for row in rows],
        "95 % interval": [_interval(row.interval) for row in rows],
        "published %": [_published(row.published) for row in rows],
        "best rate": [f"{row.rate:g}{_marked(row)}" for row in rows],
    }
    if varies(settings, lambda history: history.setting.weight_decay):
        columns["weight decay"] = [f"{row.weight_decay:g}" for row in rows]
    if varies(settings, lambda history: history.last_layers):
        columns["layers"] = [f"last {row.last_layers}" for row in rows]
    if varies(settings, lambda history: history.final_norm):
        columns["final norm"] = ["yes" if row.final_norm else "no" for row in rows]
    columns["held-out %"] = [
        _percent(row.selected_accuracy) if row.select == "heldout" else "" for row in rows
    ]
    columns["top-5 %"] = [_percent(row.accuracy5) for row in rows]
    columns["mean per class %"] = [_mean_per_class(row) for row in rows]
    columns["images"] = [f"{row.total:,}" for row in rows]
    average = _average(rows)
    if average:
        for name, column in columns.items():
            column.append(average.get(name, ""))
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(tuple(kept), tuple(zip(*kept.values(), strict=True)), tuple(_notes(rows, studies)))


def as_csv(studies: Mapping[str, Results]) -> str:
    """Every row with all its digits; accuracies from 0 to 1, but for the published in percent."""
    fields = [field.name for field in dataclasses.fields(Row)]
    pairs = ("interval", "mean_per_class_interval")
    header = [
        column
        for name in fields
        for column in ([f"{name}_low", f"{name}_high"] if name in pairs else [name])
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in make_rows(studies):
        cells = []
        for name in fields:
            value = getattr(row, name)
            if name in pairs:
                cells += value or ("", "")
            elif name == "published":
                cells.append(value.accuracy if value else "")
            else:
                cells.append("" if value is None else value)
        writer.writerow(cells)
    return text.getvalue()


def _notes(rows: Sequence[Row], studies: Mapping[str, Results]) -> list[str]:
    splits = [
        f"{row.label} ({row.split if row.dataset == row.label else f'{row.dataset}, {row.split}'})"
        for row in rows
    ]
    notes = [f"Accuracies are of heads after their last step, on {_listed(splits)}."]
    on_test = [row.label for row in rows if row.select == "test"]
    on_heldout = [row.label for row in rows if row.select == "heldout"]
    everywhere = not (on_test and on_heldout)
    if on_test:
        where = "" if everywhere else f" ({_listed(on_test)})"
        notes.append(
            f"Chosen on the reported split{where}: each row is the head that is best on the very "
            "images its accuracy is reported on, as in published numbers, and flattered by that."
        )
    if on_heldout:
        where = "" if everywhere else f" ({_listed(on_heldout)})"
        notes.append(
            f"Chosen on a held-out part of the training images{where}, which no head was trained "
            "on; the reported split chose nothing."
        )
    notes.append(
        "Rates are effective: the highest that the optimizer reaches. Published runs without a "
        "warm-up are named after ten times theirs."
    )
    edges = [
        f"{row.label} {row.kind} (the {row.edge} of {row.num_rates})" for row in rows if row.edge
    ]
    if edges:
        notes.append(
            "The best rate is at the end of its list, and a better one may lie beyond: "
            f"{_listed(edges)}."
        )
    notes.append(
        f"Intervals hold the middle 95 % of {DRAWS:,} bootstrap draws of the reported images; "
        "neither the seed of the training nor the choice of the head is in them."
    )
    for label, dataset in {row.label: row.dataset for row in rows}.items():
        missing = reference.not_computed(dataset)
        if missing:
            notes.append(f"{label} is conventionally reported by {missing}: not computed here.")
    notes += dict.fromkeys(_others(row) for row in rows if row.published)
    averages = [f"{name} {mean:.1f}" for name, mean in _published_averages(rows).items()]
    if averages:
        notes.append(f"Published averages of the fifteen, attentive: {_listed(averages)} %.")
    notes += dict.fromkeys(
        f"{row.label}: {row.unreadable:,} images could not be decoded and count nowhere."
        for row in rows
        if row.unreadable
    )
    notes += dict.fromkeys(
        f"Encoder: {results.provenance.checkpoint}, weights with the SHA-256 "
        f"{results.provenance.checkpoint_hash}."
        for results in studies.values()
    )
    return notes


def _others(row: Row) -> str:
    """What other methods reach in the place of a published number."""
    found = reference.published(row.benchmark, row.kind, row.encoder)
    numbers = ", ".join(f"{p.method} {p.accuracy:.1f}" for p in found)
    return f"Published top-1 of {row.encoder} encoders on {row.benchmark}, {row.kind}: {numbers} %."


def _average(rows: Sequence[Row]) -> dict[str, str]:
    """The cells of the mean over the fifteen benchmarks, where each of them is there once."""
    found = _fifteen(rows)
    if not found:
        return {}
    published = [f"{mean:.1f} ({name})" for name, mean in _published_averages(rows).items()]
    return {
        "data set": f"average of {len(found)}",
        "probe": "attentive",
        "top-1 %": _percent(sum(row.accuracy for row in found) / len(found)),
        "published %": published[0] if published else "",
    }


def _published_averages(rows: Sequence[Row]) -> dict[str, float]:
    """The published averages that belong beside ours: those of encoders of the same size."""
    encoders = {row.encoder if row.benchmark else "" for row in _fifteen(rows)}
    return reference.PUBLISHED_AVERAGES.get(encoders.pop(), {}) if len(encoders) == 1 else {}


def _fifteen(rows: Sequence[Row]) -> list[Row]:
    """The attentive rows of the benchmarks, where each has one; else none."""
    attentive = {name: [] for name in reference.BENCHMARKS}
    for row in rows:
        if row.kind == "attentive":
            attentive.get(reference.set_name(row.dataset), []).append(row)
    once = all(len(found) == 1 for found in attentive.values())
    return [row for (row,) in attentive.values()] if once else []


def _marked(row: Row) -> str:
    return f" ({row.edge} tried)" if row.edge else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"


def _mean_per_class(row: Row) -> str:
    if row.mean_per_class is None:
        return ""
    return f"{_percent(row.mean_per_class)} ({_interval(row.mean_per_class_interval)})"


def _published(found: reference.Published | None) -> str:
    return f"{found.accuracy:.1f} ({found.method}-{found.encoder})" if found else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
