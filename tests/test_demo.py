"""The demo, as a user runs it: minutes each, so nearly all of it is slow."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from xtra_jax.config import load
from xtra_jax.demo import demo
from xtra_jax.probing.results import best_head, read_results
from xtra_jax.training.checkpoint import restore_params

SEEDS = (0, 1, 2)


def xtra(*arguments, **options):
    """Starts the command in a process of its own, on the CPU as it is."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "xtra_jax", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes, **options)


def finished(process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Working directory and printed table of the demo for each seed."""
    folder = tmp_path_factory.mktemp("demos")
    return {
        seed: (
            folder / str(seed),
            finished(xtra("demo", "--workdir", folder / str(seed), f"--config.seed={seed}")),
        )
        for seed in SEEDS
    }


def accuracies(workdir) -> dict:
    """Accuracy by encoder and kind of probe."""
    found = {}
    for encoder in ("pretrained", "untrained"):
        (folder,) = (workdir / "probes").glob(f"digits_{encoder}*")
        histories = read_results(folder).histories
        kinds = ("linear", "attentive")
        found[encoder] = {kind: best_head(histories, kind).test.accuracy for kind in kinds}
    return found


@pytest.mark.slow
def test_attentive_probes_reach_95_percent_and_pretraining_gives_linear_ones_5_points(demos):
    found = [accuracies(workdir) for workdir, _ in demos.values()]
    for accuracy in found:
        assert accuracy["pretrained"]["attentive"] >= 0.95
    gaps = [a["pretrained"]["linear"] - a["untrained"]["linear"] for a in found]
    assert np.mean(gaps) >= 0.05


@pytest.mark.slow
def test_the_table_tells_what_was_found_and_where_it_is(demos):
    workdir, table = demos[0]
    found = accuracies(workdir)
    for kind in ("linear", "attentive"):
        row = re.search(rf"{kind} probe\s+([\d.]+)%\s+([\d.]+)%", table)
        shown = [float(value) / 100 for value in row.groups()]
        expected = [found[encoder][kind] for encoder in ("pretrained", "untrained")]
        np.testing.assert_allclose(shown, expected, atol=6e-4)
    assert "raw pixels, logistic regression" in table and "images/s" in table
    assert str(workdir / "reconstruction.png") in table
    assert (workdir / "reconstruction.png").stat().st_size > 10_000


@pytest.mark.slow
def test_killed_pretraining_goes_on_to_the_same_parameters_and_the_same_probes(demos, tmp_path):
    """Killed twice at moments of no choosing; then the whole demo, to the same numbers."""
    workdir, _ = demos[0]
    for checkpoints in (1, 2):
        process = xtra("demo", "--workdir", tmp_path)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            kept = tmp_path / "checkpoints"
            if kept.exists() and len([p for p in kept.iterdir() if p.name.isdigit()]) > checkpoints:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finished(xtra("demo", "--workdir", tmp_path))
    ours, theirs = restore_params(tmp_path), restore_params(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert accuracies(tmp_path) == accuracies(workdir)


def test_a_demo_that_is_trained_longer_probes_its_new_encoder_elsewhere(monkeypatch, tmp_path):
    """With all that takes long left out."""
    probed = {}

    def pretrained(config, workdir, **options):
        params = {"encoder": {"steps_taken": np.full(1, config.steps)}}
        return SimpleNamespace(
            stopped_by="", state=SimpleNamespace(params=params), step=config.steps
        )

    def probe_encoder(config, encoder, folder):
        assert probed.setdefault(str(folder), encoder.sha256) == encoder.sha256
        history = SimpleNamespace(test=SimpleNamespace(accuracy=0.5))
        return SimpleNamespace(results=SimpleNamespace(histories=[history]))

    untrained = {"encoder": {"steps_taken": np.zeros(1)}}
    stubs = {
        "pretrain": pretrained,
        "probe_encoder": probe_encoder,
        "init_params": lambda spec, key: untrained,
        "best_head": lambda histories, kind: histories[0],
        "pixel_baselines": lambda config: {},
        "reconstruct": lambda workdir, path: path,
        "table": lambda *arguments: "the table",
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(f"xtra_jax.demo.{name}", stub)
    for steps in (20, 40, 40):
        config = load("configs/demo.py", {"epochs": 0.0, "steps": steps})
        assert demo(config, str(tmp_path)) == "the table"
    assert len(probed) == 3
