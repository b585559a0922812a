"""A probe that is interrupted and repeated ends with the numbers of one that is not."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import time

import pytest

from tests.probing import tiny
from xtra_jax.data.sources import TfdsSource
from xtra_jax.errors import UserError
from xtra_jax.probing.job import probe_encoder
from xtra_jax.training.progress import Progress
from xtra_jax.training.stopping import Stop

STEPS = 10
# Evaluations after steps 4, 8 and 10; the augmentation is random on the host and on the device.
SETTINGS = {
    "steps": STEPS,
    "eval_every": 4,
    "save_every": 3,
    "data.randaugment": "rand-m9-mstd0.5-inc1",
    "data.erasing": 0.25,
}


class Stopping(Progress):
    """Ends a probe after a step: as SIGTERM does, which saves, or at once."""

    def __init__(self, step: int = 0, stop: Stop | None = None):
        super().__init__(STEPS, active=False)
        self._step, self._stop, self.notes = step, stop, []

    def update(self, step, **fields):
        if step == self._step and self._stop is None:
            raise KeyboardInterrupt
        if step == self._step:
            self._stop.request("a test")

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def config(runs):
    return tiny.digits(runs.overrides()["data.data_dir"], **SETTINGS)


@pytest.fixture(scope="module")
def encoder():
    return tiny.encoder()


@pytest.fixture(scope="module")
def cached(runs):
    with runs.cache_here():
        yield


@pytest.fixture(scope="module")
def uninterrupted(cached, config, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "probe"
    probe_encoder(config, encoder, folder, progress=Stopping())
    return folder


def stopped_at(step, config, encoder, folder):
    """Stops as a signal does, which saves."""
    stop = Stop()
    outcome = probe_encoder(config, encoder, folder, progress=Stopping(step, stop), stop=stop)
    assert (outcome.step, outcome.stopped_by, outcome.results) == (step, "a test", None)
    assert (folder / "checkpoints" / str(step)).is_dir()
    assert not (folder / "results.json").exists()


def test_a_probe_that_is_stopped_and_killed_ends_with_the_same_numbers(
    uninterrupted, config, encoder, tmp_path
):
    """Stopped where an evaluation is due, which then follows, and ended without a save."""
    stopped_at(4, config, encoder, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        probe_encoder(config, encoder, tmp_path, progress=Stopping(8))
    last = Stopping()
    outcome = probe_encoder(config, encoder, tmp_path, progress=last)
    assert any(note.startswith("continuing from step 6 ") for note in last.notes)
    assert outcome.step == STEPS
    assert tiny.found(tmp_path) == tiny.found(uninterrupted)
    evaluations = outcome.results.histories[0].evaluations
    assert [evaluation.step for evaluation in evaluations] == [4, 8, 10]
    assert not (tmp_path / "checkpoints").exists()


def test_a_complete_probe_is_not_done_again(uninterrupted, config, encoder):
    before = (uninterrupted / "results.json").stat().st_mtime_ns
    last = Stopping()
    outcome = probe_encoder(config, encoder, uninterrupted, progress=last)
    assert (uninterrupted / "results.json").stat().st_mtime_ns == before
    assert last.notes == [f"this probe is complete: its results are in {uninterrupted}"]
    assert len(outcome.results.histories) == 4


@pytest.fixture(scope="module")
def begun(cached, config, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "probe"
    stopped_at(2, config, encoder, folder)
    return folder


@pytest.mark.parametrize("state", ["begun", "uninterrupted"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, r"holds a probe with seed=0, and the config now says 1: give another --out"),
        ({"rates": (1e-3,)}, r"with rates=\(0.001, 0.01\), and the config now says \(0.001,\)"),
    ],
)
def test_a_folder_with_a_probe_of_another_config_is_refused_in_a_sentence(
    state, changes, sentence, request, runs, encoder
):
    folder = request.getfixturevalue(state)
    other = tiny.digits(runs.overrides()["data.data_dir"], **SETTINGS | changes)
    with pytest.raises(UserError, match=sentence):
        probe_encoder(other, encoder, folder, progress=Stopping())


@pytest.mark.parametrize("state", ["begun", "uninterrupted"])
def test_a_folder_with_a_probe_of_another_encoder_is_refused_in_a_sentence(state, request, config):
    with pytest.raises(UserError, match="holds a probe of another encoder .SHA-256 "):
        probe_encoder(config, tiny.encoder(2), request.getfixturevalue(state))


def test_a_folder_whose_probe_began_with_other_images_is_refused_in_a_sentence(
    begun, config, encoder, monkeypatch
):
    monkeypatch.setattr(TfdsSource, "digest", lambda self: "another")
    with pytest.raises(UserError, match="the training images of digits that the probe in"):
        probe_encoder(config, encoder, begun, progress=Stopping())


def test_the_working_directory_of_a_pretraining_run_is_no_place_for_a_probe(
    config, encoder, tmp_path
):
    workdir = tiny.save_encoder(tmp_path / "run")
    with pytest.raises(UserError, match="is the working directory of a pretraining run"):
        probe_encoder(config, encoder, workdir, progress=Stopping())
    assert (workdir / "checkpoints" / "1" / "state").exists()


def test_what_changes_no_numbers_may_change(begun, runs, encoder, uninterrupted, tmp_path):
    shutil.copytree(begun, tmp_path / "probe")
    changes = {"log_every": 5, "save_every": 100, "keep_checkpoints": 2, "data.prefetch": 1}
    config = tiny.digits(runs.overrides()["data.data_dir"], **SETTINGS | changes)
    outcome = probe_encoder(config, encoder, tmp_path / "probe", progress=Stopping())
    ours, theirs = tiny.found(tmp_path / "probe"), tiny.found(uninterrupted)
    assert ours["results"]["heads"] == theirs["results"]["heads"]
    assert outcome.results.provenance.config["log_every"] == 5


@pytest.mark.slow
def test_a_probe_that_is_killed_again_and_again_ends_with_the_same_numbers(runs, tmp_path):
    """By SIGKILL, at moments of no choosing: while it starts, trains, saves, evaluates, writes."""
    encoder = tiny.save_encoder(tmp_path / "run")
    settings = tiny.PROBE | SETTINGS | {"steps": 30, "eval_every": 7, "rates": "0.001,0.01"}
    settings |= {"probe.attentive_layers": 1, "save_every": 2}
    settings |= {"data.randaugment": "", "data.erasing": 0.0}  # so that features are kept
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    seconds = timed(runs.start_probe(encoder, whole, settings))
    numbers = random.Random(0)
    for _ in range(4):
        run = runs.start_probe(encoder, killed, settings)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(numbers.uniform(0.3, 1.0) * seconds)
        run.kill()
        run.process.wait()
    runs.start_probe(encoder, killed, settings).succeed(timeout=900)
    assert tiny.found(killed) == tiny.found(whole)


def timed(run) -> float:
    """The seconds that a run takes."""
    run.succeed(timeout=900)
    return time.monotonic() - run.began
