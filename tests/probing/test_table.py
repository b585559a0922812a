"""The table over data sets: what it says, and what it does not keep quiet about."""

import csv
import dataclasses

import numpy as np
import pytest

from tests.probing.studies import make_histories, make_history, make_results
from xtra_jax.probing import reference
from xtra_jax.probing.bootstrap import accuracy_interval
from xtra_jax.probing.results import Results
from xtra_jax.probing.table import as_csv, edge_of, make_row, make_table, write_tables

STUDIES = {
    "imagenet2012": make_results("imagenet2012", split="validation"),
    "pets": make_results("oxford_iiit_pet", select="heldout", unreadable=2),
    "camelyon17": make_results("camelyon17", make_histories(classes=2), split="val"),
}


def columns(studies):
    table = make_table(studies)
    cells = dict(zip(table.header, zip(*table.lines, strict=True), strict=True))
    return cells, "\n".join(table.notes)


def test_a_row_is_the_best_head_of_a_kind_on_the_reported_examples():
    row = make_row("digits", make_results(), "attentive")
    assert (row.rate, row.accuracy, row.total) == (1e-3, 0.91, 100)
    assert row.interval == accuracy_interval(91, 100)
    assert row.accuracy5 == 0.95


def test_cells_are_percentages_in_the_order_of_the_studies():
    cells, _ = columns(STUDIES)
    assert cells["data set"] == ("imagenet2012",) * 2 + ("pets",) * 2 + ("camelyon17",) * 2
    assert cells["probe"] == ("attentive", "linear") * 3
    assert cells["top-1 %"] == ("91.00", "79.00") * 3
    assert cells["95 % interval"][0] == "85.00 to 96.00"
    assert cells["top-5 %"] == ("95.00", "89.00") * 2 + ("", "")


def test_a_best_rate_at_the_end_of_its_list_is_told_of():
    cells, notes = columns(STUDIES)
    assert cells["best rate"][:2] == ("0.001", "0.01 (highest tried)")
    assert "imagenet2012 linear (the highest of 3)" in notes
    assert "imagenet2012 attentive (the" not in notes
    assert edge_of([1, 2, 3], 1) == "lowest"
    assert edge_of([1, 2, 3], 3) == "highest"
    assert edge_of([1, 2, 3], 2) == "" and edge_of([1, 1], 1) == ""


def test_it_says_on_which_examples_the_heads_were_chosen():
    _, on_test = columns({"digits": make_results()})
    assert "Chosen on the reported split: " in on_test and "held-out" not in on_test
    cells, heldout = columns({"digits": make_results(select="heldout")})
    assert "Chosen on a held-out part" in heldout and "Chosen on the reported" not in heldout
    assert cells["held-out %"] == ("91.00", "79.00")
    cells, mixed = columns(STUDIES)
    assert "Chosen on the reported split (imagenet2012, camelyon17)" in mixed
    assert "Chosen on a held-out part of the training images (pets)" in mixed
    assert cells["held-out %"] == ("", "", "91.00", "79.00", "", "")


def test_heads_that_were_chosen_on_held_out_examples_are_reported_as_they_are():
    heads = [make_history(1e-3, 80, test=50), make_history(1e-2, 70, test=90)]
    row = make_row("digits", make_results(histories=heads, select="heldout"), "linear")
    assert (row.rate, row.selected_accuracy, row.accuracy) == (1e-3, 0.8, 0.5)


def test_rates_are_said_to_be_the_effective_ones():
    assert "Rates are effective" in columns(STUDIES)[1]


def test_pets_have_a_mean_per_class_with_its_interval_and_others_have_none():
    cells, _ = columns(STUDIES)
    assert [bool(cell) for cell in cells["mean per class %"]] == [False] * 2 + [True] * 2 + [
        False
    ] * 2
    row = make_row("pets", STUDIES["pets"], "linear")
    low, high = row.mean_per_class_interval
    assert low < row.mean_per_class < high
    assert row.mean_per_class != row.accuracy


def test_published_numbers_stand_beside_encoders_of_their_size_alone():
    cells, notes = columns(STUDIES)
    assert cells["published %"] == ("76.8 (XTRA-B/16)", "70.2 (XTRA-B/16)", "", "", "", "")
    assert "imagenet2012, linear: XTRA 70.2, MAE 68.0" in notes
    cells, notes = columns({"imagenet2012": imagenet(variant="tiny")})
    assert "published %" not in cells and "Published top-1" not in notes


@pytest.mark.parametrize(
    "model, encoder",
    [
        ({}, "B/16"),
        ({"width": 0, "depth": 12, "mlp_ratio": 0.0}, "B/16"),
        ({"variant": "custom", "width": 768, "depth": 12, "num_heads": 12}, "B/16"),
        ({"variant": "huge", "patch_size": 14}, "H/14"),
        ({"width": 192, "depth": 3}, ""),
        ({"num_heads": 6}, ""),
        ({"mlp_ratio": 2.0}, ""),
        ({"variant": "tiny"}, ""),
    ],
)
def test_an_encoder_is_called_by_the_sizes_that_it_really_has(model, encoder):
    assert make_row("imagenet2012", imagenet(model=model), "linear").encoder == encoder


def test_published_numbers_stand_beside_versions_and_shrunk_copies_of_a_set_too():
    for name in (
        "imagenet2012:5.1.0",
        "imagenet2012/max_side_400",
        "imagenet2012/max_side_9:1.0.0",
    ):
        row = make_row("imagenet2012", make_results(name, split="validation"), "linear")
        assert row.published.accuracy == 70.2
    assert make_row("pets", make_results("oxford_iiit_pet:3.2.0"), "linear").mean_per_class


@pytest.mark.parametrize(
    "data",
    [
        {"subset": "1%"},
        {"eval_split": "validation[:10%]"},
        {"train_split": "train[:50%]"},
        {"eval_dataset": "imagenet_v2"},
        {"image_size": 64},
    ],
)
def test_published_numbers_do_not_stand_beside_parts_of_a_set_or_other_images(data):
    row = make_row("imagenet2012", imagenet(data=data), "linear")
    assert row.published is None and row.encoder == "B/16"


def imagenet(**changes):
    return make_results("imagenet2012", split="validation", **changes)


def fifteen(*, data=None, **model):
    """Attentive probes of all benchmarks, that get 60 to 74 of 100 images right."""
    return {
        name: make_results(
            name,
            [make_history(1e-3, n, kind="attentive")],
            split=evaluated,
            data={"train_split": trained, **(data or {})},
            model=model,
        )
        for n, (name, (trained, evaluated)) in enumerate(reference.BENCHMARKS.items(), start=60)
    }


def test_the_average_is_that_of_all_fifteen_or_none():
    studies = fifteen()
    cells, _ = columns(studies)
    assert cells["data set"][-1] == "average of 15"
    assert cells["top-1 %"][-1] == f"{np.mean(range(60, 75)):.2f}"
    cells, _ = columns(studies | {"again": studies["dtd"]})
    assert cells["data set"][-1] == "again"
    del studies["dtd"]
    assert columns(studies)[0]["data set"][-1] != "average of 15"


def test_the_published_average_stands_beside_encoders_of_its_size_alone():
    cells, notes = columns(fifteen(variant="huge", patch_size=14))
    assert cells["published %"][-1] == "76.2 (XTRA-H/14)"
    assert "attentive: XTRA-H/14 76.2, MAE-H/14 75.3, AIM-0.6B on DFN-2B+ 75.6" in notes
    for others in (fifteen(), fifteen(data={"subset": "10%"}, variant="huge", patch_size=14)):
        cells, notes = columns(others)
        assert cells["data set"][-1] == "average of 15"
        assert not any("H/14" in cell for cell in cells.get("published %", ()))
        assert "Published averages" not in notes


def test_the_fifteen_are_those_of_the_configs():
    from configs.probe import BENCHMARKS

    assert {
        of.dataset or name: (of.train_split, of.eval_split) for name, of in BENCHMARKS.items()
    } == reference.BENCHMARKS


def test_a_convention_that_is_not_followed_is_named():
    assert "iwildcam is conventionally reported by macro F1: not computed" in "".join(
        make_table({"iwildcam": make_results("iwildcam")}).notes
    )


def test_what_heads_differ_in_has_a_column_and_nothing_else_has():
    plain, _ = columns({"digits": make_results()})
    assert not {"weight decay", "layers", "final norm", "mean per class %"} & plain.keys()
    heads = [
        make_history(1e-3, 5),
        make_history(1e-3, 9, last_layers=4),
        make_history(1e-3, 8, final_norm=True),
        make_history(1e-3, 7, weight_decay=0.0),
    ]
    cells, _ = columns({"digits": make_results(histories=heads)})
    assert (cells["layers"], cells["final norm"]) == (("last 4",), ("no",))
    assert cells["weight decay"] == ("0.1",)


def test_unreadable_images_and_the_hash_of_the_encoder_are_in_the_notes():
    _, notes = columns(STUDIES)
    assert "pets: 2 images could not be decoded" in notes
    assert STUDIES["pets"].provenance.checkpoint_hash in notes


def test_names_cannot_break_the_markdown():
    histories, provenance = make_results()
    provenance = dataclasses.replace(provenance, checkpoint="a|b\n<i>")
    lines = make_table({"x|y\n*z*": Results(histories, provenance)}).markdown().splitlines()
    assert lines[2].startswith(r"| x\|y \*z\* | attentive |")
    assert r"a\|b &lt;i>" in lines[-1]
    assert len({line.replace(r"\|", "").count("|") for line in lines[:4]}) == 1


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_the_csv_has_every_digit(kind):
    rows = list(csv.DictReader(as_csv(STUDIES).splitlines()))
    assert len(rows) == 6
    found = next(r for r in rows if (r["label"], r["kind"]) == ("pets", kind))
    row = make_row("pets", STUDIES["pets"], kind)
    assert float(found["accuracy"]) == row.accuracy
    assert (float(found["interval_low"]), float(found["interval_high"])) == row.interval
    assert float(found["mean_per_class"]) == row.mean_per_class
    assert (found["select"], found["edge"], found["published"]) == ("heldout", row.edge, "")


def test_the_tables_and_the_picture_are_written_together(tmp_path):
    write_tables(tmp_path / "deep", STUDIES)
    assert {file.name for file in (tmp_path / "deep").iterdir()} == {
        "table.md",
        "table.csv",
        "rates.png",
    }
    assert (tmp_path / "deep" / "table.md").read_text() == make_table(STUDIES).markdown()
