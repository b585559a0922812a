"""The file that a probe leaves behind."""

import json
import math

import pytest

from xtra_jax.probing.results import Evaluation, History, best_head, write_results
from xtra_jax.probing.sweep import Setting


def history(rate, *correct, group="linear", loss=0.5):
    evaluations = (
        Evaluation(10 * epoch, float(epoch), 0.7, loss, hits, 10)
        for epoch, hits in enumerate(correct, start=1)
    )
    return History(group, Setting(rate, 0.1), tuple(evaluations))


HISTORIES = [
    history(1e-3, 5, 7, 7, 6),
    history(1e-2, 4, 9, 2, 7),
    history(1e-1, 1, 1, 1, 1, group="attentive", loss=math.nan),
]


def test_best_is_the_earliest_peak_and_last_is_the_end():
    assert (HISTORIES[0].best.step, HISTORIES[0].last.step) == (20, 40)
    assert HISTORIES[1].best.accuracy == 0.9
    assert HISTORIES[1].last.accuracy == 0.7


def test_the_best_head_of_a_group_is_chosen_by_its_last_accuracy():
    assert best_head(HISTORIES, "linear").setting.rate == 1e-2
    assert best_head(HISTORIES, "attentive").setting.rate == 1e-1
    assert best_head([history(1e-3, 3), history(1e-2, 3)], "linear").setting.rate == 1e-3


def test_the_file_holds_every_rate_and_evaluation_and_where_they_came_from(tmp_path):
    path = tmp_path / "deep" / "results.json"
    config = {"seed": 0, "optim": {"beta1": 0.9}}
    write_results(path, HISTORIES, config=config, checkpoint="runs/demo", unreadable=3)
    results = json.loads(path.read_text())

    assert results["config"] == config
    assert results["checkpoint"] == "runs/demo"
    assert results["unreadable"] == 3
    assert results["best"]["linear"]["rate"] == 1e-2
    assert [head["rate"] for head in results["heads"]] == [1e-3, 1e-2, 1e-1]
    assert [e["accuracy"] for e in results["heads"][1]["evaluations"]] == [0.4, 0.9, 0.2, 0.7]
    assert results["heads"][0]["best"] == results["heads"][0]["evaluations"][1]
    assert results["heads"][0]["last"]["epoch"] == 4
    assert results["heads"][2]["last"]["loss"] is None


def test_a_write_that_fails_leaves_the_earlier_file_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, HISTORIES, config={}, checkpoint="first")
    with pytest.raises(TypeError):
        write_results(path, HISTORIES, config={"not": object()}, checkpoint="second")
    assert json.loads(path.read_text())["checkpoint"] == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
