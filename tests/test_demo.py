"""The demo, as a user runs it: minutes each, so all of it is slow."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from xtra_jax.probing.results import best_head, read_results
from xtra_jax.training.checkpoint import restore_params

pytestmark = pytest.mark.slow

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
        histories = read_results(workdir / "probes" / f"digits_{encoder}").histories
        kinds = ("linear", "attentive")
        found[encoder] = {kind: best_head(histories, kind).test.accuracy for kind in kinds}
    return found


def test_attentive_probes_reach_95_percent_and_pretraining_gives_linear_ones_5_points(demos):
    found = [accuracies(workdir) for workdir, _ in demos.values()]
    for accuracy in found:
        assert accuracy["pretrained"]["attentive"] >= 0.95
    gaps = [a["pretrained"]["linear"] - a["untrained"]["linear"] for a in found]
    assert np.mean(gaps) >= 0.05


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
