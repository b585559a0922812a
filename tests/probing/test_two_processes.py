"""A probe that two processes share is the probe of one."""

from __future__ import annotations

import signal

import pytest

from tests.probing import tiny
from tests.runs import free_port
from xtra_jax.probing.results import read_results

QUICK = {
    "steps": 8,
    "epochs": 0.0,
    "eval_every": 4,
    "save_every": 3,
    "log_every": 1,
    "batch_size": 16,
    "rates": "0.001,0.01",
    "probe.attentive_layers": 1,
    "probe.num_heads": 4,
    "data.num_workers": 0,
}


def start_two(runs, encoder, out, settings=QUICK):
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2", "--process_id")
    # Of their own: in the encoder's run lie those that one process has computed.
    settings = settings | {"cache.dir": str(out / "features")}
    return [
        runs.start_probe(encoder, out, settings, devices=2, arguments=(*place, str(i)))
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_probe_as_one_and_count_every_example_once(runs, tmp_path):
    encoder = tiny.save_encoder(tmp_path / "run")
    one, two = tmp_path / "one", tmp_path / "two"
    runs.start_probe(encoder, one, QUICK, devices=4).succeed()
    pair = start_two(runs, encoder, two)
    for process in pair:
        process.succeed()
    assert "best accuracy" in pair[0].output and "Chosen on the reported split" in pair[0].output
    assert pair[1].own_lines == []
    assert_same_numbers(two, one)
    kept = [{file.name for file in (at / "features").iterdir()} for at in (two, tmp_path / "run")]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_two_processes_that_are_told_to_stop_save_and_two_others_go_on(runs, tmp_path):
    """Only one of them is told."""
    encoder = tiny.save_encoder(tmp_path / "run")
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    settings = QUICK | {"steps": 40, "eval_every": 20}
    runs.start_probe(encoder, whole, settings, devices=4).succeed()
    pair = start_two(runs, encoder, out, settings)
    assert pair[0].wait_until(lambda: pair[0].step() >= 2)
    pair[1].kill(signal.SIGTERM)
    for process in pair:
        process.succeed()
    assert "by SIGTERM to process 1; saved: the same command continues" in pair[0].output
    assert not (out / "results.json").exists()
    pair = start_two(runs, encoder, out, settings)
    for process in pair:
        process.succeed()
    assert "continuing from step" in pair[0].output
    assert_same_numbers(out, whole)


def assert_same_numbers(ours, theirs):
    ours, theirs = read_results(ours).histories, read_results(theirs).histories
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a.group, a.setting) == (b.group, b.setting)
        assert a.test.total == b.test.total == 355  # of the digits, an uneven number
        for x, y in zip(a.evaluations, b.evaluations, strict=True):
            assert (x.step, x.correct, x.correct5, x.total) == (
                y.step,
                y.correct,
                y.correct5,
                y.total,
            )
            assert x.loss == pytest.approx(y.loss, rel=1e-4)
            assert x.train_loss == pytest.approx(y.train_loss, rel=1e-4)
