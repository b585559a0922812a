"""The part of the page that says what probes found out: tables, and plots of every study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xtra_jax.probing.bootstrap import accuracy_interval
from xtra_jax.probing.plots import rate_curves
from xtra_jax.probing.reference import set_name
from xtra_jax.probing.results import History, Results, best_head, describe_group, head_name
from xtra_jax.probing.table import make_table
from xtra_jax.report import html
from xtra_jax.report.charts import Series, chart
from xtra_jax.report.pictures import Pictures
from xtra_jax.report.run import Run, Study

_KINDS = {"attentive": 0, "linear": 1}  # their colours


def probes(run: Run, pictures: Pictures, command: str) -> str:
    """One table over the studies of one data set, one for each of several, and their plots.

    Args:
        pictures: of the same run, for the hash of its newest encoder.
        command: what makes a study.
    """
    parts = [html.missing(sentence) for sentence in run.unreadable]
    if not run.studies:
        parts.append(html.missing("No probe has been trained on this run. This does it:", command))
    single = _labelled([study for study in run.studies if len(study.results) == 1])
    if single:
        parts.append(_studies(single, pictures))
    for study in run.studies:
        if len(study.results) > 1:
            parts.append(f"<h3>{html.text(study.name)}</h3>{_studies(study.results, pictures)}")
    return "".join([*parts, _training_free(run)])


def highlights(studies: Sequence[Study], sha256: str) -> list[tuple[str, str, str]]:
    """The accuracy that each kind of probe reached on an encoder, as (kind, percent, where).

    Over several data sets it is their mean. Where several studies are of the same set, the most
    accurate one counts, and `where` says so.
    """
    reached: dict[str, dict[str, list[float]]] = {}
    for study in studies:
        for histories, provenance in study.results.values():
            if provenance.checkpoint_hash == sha256:
                for kind in dict.fromkeys(history.kind for history in histories):
                    of = reached.setdefault(kind, {})
                    accuracy = best_head(histories, kind).test.accuracy
                    of.setdefault(set_name(provenance.dataset), []).append(accuracy)
    tiles = []
    for kind, of in reached.items():
        most = max(map(len, of.values()))
        mean = sum(map(max, of.values())) / len(of)
        if len(of) == 1:
            where = next(iter(of)) + (f", the best of {most} studies" if most > 1 else "")
        else:
            where = f"mean of {len(of)} data sets" + (
                ", the best study of each" if most > 1 else ""
            )
        tiles.append((kind, f"{100 * mean:.2f} %", where))
    return tiles


def _training_free(run: Run) -> str:
    """Few-shot and k-NN of checkpoints."""
    if not run.measured:
        return ""
    header = ("data set", "by", "features", "top-1 %", "images", "encoder")
    lines = [
        (
            found.dataset,
            found.by,
            found.features,
            f"{100 * found.accuracy:.2f}",
            f"{found.images:,}",
            found.checkpoint,
        )
        for found in run.measured
    ]
    return f"<h3>Without training</h3>{html.table(header, lines)}"


def _labelled(studies: Sequence[Study]) -> dict[str, Results]:
    """Studies of one data set by its name, or by their own where two are of the same."""
    datasets = [name for study in studies for name in study.results]
    return {
        name if datasets.count(name) == 1 else study.name: results
        for study in studies
        for name, results in study.results.items()
    }


def _studies(results: Mapping[str, Results], pictures: Pictures) -> str:
    """The table over data sets, plots of each, and its heads folded away."""
    table = make_table(results)
    charts = "".join(_rates(label, found) for label, found in results.items())
    alone = len(results) == 1  # then there is room for more beside its plot
    if alone:
        charts += "".join(map(_epochs, results.values()))
    folded = "".join(
        html.folded(
            f"{label}: every head, and where its numbers come from",
            f"{'' if alone else _grid(_epochs(found))}{_inside(found, pictures)}",
        )
        for label, found in results.items()
    )
    shown = html.table(table.header, table.lines)
    return f"{shown}{_grid(charts)}{html.notes(table.notes)}{folded}"


def _grid(charts: str) -> str:
    return f'<div class="charts">{charts}</div>' if charts else ""


def _rates(label: str, results: Results) -> str:
    """Top-1 on the reported examples against the learning rate."""
    histories, provenance = results
    series, others = [], len(_KINDS)
    taken: set[str] = set()
    for name, curve in rate_curves(histories).items():
        kind = curve[0].kind
        color = _KINDS[kind] if kind not in taken else others
        others += kind in taken
        taken.add(kind)
        best = best_head(histories, kind)
        starred = next((i for i, head in enumerate(curve) if head is best), None)
        ends = [accuracy_interval(head.test.correct, head.test.total) for head in curve]
        band = [(100 * low, 100 * high) for low, high in ends] if starred is not None else ()
        points = [(head.setting.rate, 100 * head.test.accuracy) for head in curve]
        series.append(Series(name, points, color, band=band, star=starred))
    where = "these images" if provenance.select == "test" else "held-out training images"
    split = provenance.config["data"]["eval_split"]
    return chart(
        f"{label} ({split}), chosen on {where}",
        series,
        x_label="effective learning rate",
        y_label="top-1 accuracy, %",
        log_x=True,
    )


def _epochs(results: Results) -> str:
    """How the chosen heads came to where they are."""
    histories, provenance = results
    chosen = [best_head(histories, kind) for kind in dict.fromkeys(h.kind for h in histories)]
    if all(len(history.evaluations) < 2 for history in chosen):
        return ""
    series = [
        Series(
            f"{describe_group(head, histories)}, rate {head.setting.rate:g}",
            [(entry.epoch, 100 * entry.accuracy) for entry in head.evaluations],
            _KINDS[head.kind],
        )
        for head in chosen
    ]
    test = provenance.select == "test"
    where = provenance.config["data"]["eval_split"] if test else "held-out training images"
    title = f"The chosen heads by epoch ({where})"
    return chart(title, series, x_label="epoch", y_label="top-1 accuracy, %")


def _inside(results: Results, pictures: Pictures) -> str:
    histories, provenance = results
    same = provenance.checkpoint_hash == pictures.sha256
    rows = [
        ("encoder", f"{provenance.checkpoint}{', the newest of this run' if same else ''}"),
        ("SHA-256 of its weights", provenance.checkpoint_hash),
        ("heads", f"{len(histories)}, trained together in {_duration(provenance.seconds)}"),
        ("devices", provenance.devices),
        ("versions", ", ".join(f"{name} {v}" for name, v in provenance.versions.items())),
    ]
    header = ("head", "last %", "best %", "at epoch", "reported %", "loss")
    lines = [_line(history) for history in histories]
    about = "Last and best on the examples that choose, reported on those of the table."
    return html.facts(rows) + html.table(header, lines, about)


def _line(history: History) -> tuple[str, ...]:
    last, best, test = history.last, history.best, history.test
    return (
        head_name(history),
        f"{100 * last.accuracy:.2f}",
        f"{100 * best.accuracy:.2f}",
        f"{best.epoch:.3g}",
        f"{100 * test.accuracy:.2f}",
        f"{test.loss:.4f}",
    )


def _duration(seconds: float) -> str:
    """Like 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
