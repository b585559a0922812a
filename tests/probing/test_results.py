"""What a study leaves behind, head by head."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.probing.studies import make_history, make_results
from xtra_jax.errors import UserError
from xtra_jax.probing.results import (
    best_head,
    describe_group,
    head_name,
    read_results,
    write_results,
)

HISTORIES = [
    make_history(1e-3, 50, 70, 70, 60),
    make_history(1e-2, 40, 90, 20, 70),
    make_history(1e-1, 10, 10, 10, 10, kind="attentive", last_layers=6, loss=math.nan),
]
RESULTS = make_results("food101", HISTORIES, unreadable=3)


def test_best_is_the_earliest_peak_and_last_is_the_end():
    assert (HISTORIES[0].best.step, HISTORIES[0].last.step) == (20, 40)
    assert HISTORIES[1].best.accuracy == 0.9
    assert HISTORIES[1].last.accuracy == 0.7


def test_the_best_head_of_a_kind_is_chosen_by_its_last_accuracy():
    assert best_head(HISTORIES, "linear").setting.rate == 1e-2
    assert best_head(HISTORIES, "attentive").setting.rate == 1e-1
    equal = [make_history(1e-3, 3), make_history(1e-2, 3)]
    assert best_head(equal, "linear").setting.rate == 1e-3


def test_the_reported_examples_choose_nothing_where_others_were_held_out():
    heads = [make_history(1e-3, 80, test=50), make_history(1e-2, 70, test=90)]
    assert best_head(heads, "linear").setting.rate == 1e-3


def test_the_mean_per_class_counts_every_class_that_occurs_once():
    head = dataclasses.replace(
        make_history(1e-3, 5),
        class_correct=np.array([4, 0, 1, 0]),
        class_total=np.array([4, 0, 2, 94]),
    )
    assert head.mean_per_class == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_top_5_is_left_out_where_there_are_five_classes_or_fewer():
    assert make_history(1e-3, 50, classes=5).test.accuracy5 is None
    assert make_history(1e-3, 50, classes=6).test.accuracy5 == 0.75


def test_a_group_is_told_apart_by_what_its_study_varies():
    plain = make_history(1e-3, 5, last_layers=6, kind="attentive")
    normed = make_history(1e-3, 5, final_norm=True)
    decayed = make_history(1e-3, 5, weight_decay=0.0)
    assert describe_group(plain, [plain, normed]) == "attentive, last 6 layers"
    assert describe_group(normed, [plain, normed]) == "linear, last layer, final norm"
    assert describe_group(decayed, [decayed, normed]) == "linear, last layer, weight decay 0"


def test_what_is_read_back_is_what_was_written(tmp_path):
    write_results(tmp_path / "deep" / "study", *RESULTS)
    found = read_results(tmp_path / "deep" / "study")
    assert found.provenance == RESULTS.provenance
    for ours, theirs in zip(found.histories, HISTORIES, strict=True):
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert np.array_equal(a, b) if field.name.startswith("class") else repr(a) == repr(b)


def test_a_file_for_every_head_says_what_it_reached_and_where_it_came_from(tmp_path):
    write_results(tmp_path, *RESULTS)
    names = {"linear_last1_0.001_0.1", "linear_last1_0.01_0.1", "attentive_last6_0.1_0.1"}
    assert {file.stem for file in (tmp_path / "heads").iterdir()} == names
    head = json.loads((tmp_path / "heads" / "linear_last1_0.01_0.1.json").read_text())
    assert [e["accuracy"] for e in head["evaluations"]] == [0.4, 0.9, 0.2, 0.7]
    assert head["best"] == head["evaluations"][1] and head["last"]["epoch"] == 4
    assert head["provenance"]["checkpoint_hash"] == RESULTS.provenance.checkpoint_hash
    assert head["provenance"]["config"]["data"]["dataset"] == "food101"
    assert (head["rate"], head["weight_decay"]) == (0.01, 0.1)
    broken = json.loads((tmp_path / "heads" / "attentive_last6_0.1_0.1.json").read_text())
    assert broken["last"]["loss"] is None
    everything = json.loads((tmp_path / "results.json").read_text())
    assert everything["best"]["linear"] == head_name(HISTORIES[1]) == "linear_last1_0.01_0.1"
    assert everything["provenance"]["unreadable"] == 3


def test_a_write_that_fails_leaves_the_earlier_file_as_it_was(tmp_path):
    write_results(tmp_path, *RESULTS)
    before = (tmp_path / "results.json").read_text()
    endless = make_results("food101", [make_history(1e-3, 5)])
    endless.provenance.versions["not"] = object()
    with pytest.raises(TypeError):
        write_results(tmp_path, *endless)
    assert (tmp_path / "results.json").read_text() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"heads": [], "provenance": {"new": 1}}'])
def test_a_file_that_is_none_of_a_study_is_one_sentence(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results.json is not the file of a study of probes"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "where, value, sentence",
    [
        ("heads", [], "no heads"),
        ("heads.0.evaluations", [], "a head without evaluations"),
        ("heads.0.test.total", 0, "60 of 0 examples correct"),
        ("heads.0.kind", "knn", "heads of kind 'knn'"),
        ("heads.0.class_total", [1], "counts of the classes"),
        ("provenance.config", {}, "KeyError.*data"),
        ("provenance.config", [], "TypeError"),
        ("provenance.pretraining", {}, "KeyError.*model"),
        ("provenance.config.data.dataset", 3, "data.dataset is 3"),
    ],
)
def test_a_file_with_the_right_names_and_no_study_in_it_is_one_sentence(
    tmp_path, where, value, sentence
):
    write_results(tmp_path, *RESULTS)
    whole = part = json.loads((tmp_path / "results.json").read_text())
    *path, last = where.split(".")
    for name in path:
        part = part[int(name) if name.isdigit() else name]
    part[last] = value
    (tmp_path / "results.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=f"not the file of a study of probes .*{sentence}"):
        read_results(tmp_path)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(UserError, match="not the file of a study of probes"):
        read_results(tmp_path)


def test_a_folder_without_results_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot read .*results.json: No such file"):
        read_results(tmp_path)
