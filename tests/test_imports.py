"""What each command loads: nothing heavy that it doesn't use.

Python itself lists every module that a process imports (PYTHONPROFILEIMPORTTIME).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What no command of ours needs, except those that ask for it by name.
NEVER = {"tensorflow", "torch", "matplotlib", "pandas", "sklearn", "cv2"}
OF_TRAINING = {"flax", "optax", "orbax", "tensorstore", "tensorboardX", "clu"}
OF_DATA = {"tensorflow_datasets", "grain", "numba", "scipy", "PIL", "array_record"}


def imported(output: str) -> set[str]:
    """The packages in what Python says with PYTHONPROFILEIMPORTTIME.

    It lists attempts that fail as well, by the name of the package, but then none of its modules.
    """
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", output, re.MULTILINE)
    assert names
    return {name.split(".")[0] for name in names if "." in name}


def xtra(*arguments: str) -> tuple[int, set[str]]:
    """A command's exit code, and what it loads."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "xtra_jax", *arguments],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, imported(done.stderr)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["pretrain", "--help"], ["pretrain"], ["no_such_command"]], ids=str
)
def test_help_and_mistakes_in_a_command_line_load_nothing_heavy(arguments):
    code, loaded = xtra(*arguments)
    assert code == (0 if "--help" in arguments else 2)
    assert not loaded & (NEVER | OF_TRAINING | OF_DATA | {"jax", "numpy"})


@pytest.mark.parametrize("command", ["pretrain --workdir=x", "plan --topology=x", "demo"])
def test_a_mistake_in_a_config_is_told_before_training_or_data_are_loaded(command):
    code, loaded = xtra(*command.split(), "--config=configs/demo.py", "--config.batch_sise=2")
    assert code == 2
    assert not loaded & (NEVER | OF_TRAINING | OF_DATA)


def test_listing_data_sets_loads_neither_jax_nor_what_trains(tmp_path):
    code, loaded = xtra("prepare", "--list", f"--data_dir={tmp_path}")
    assert code == 0
    assert not loaded & (NEVER | OF_TRAINING | {"jax", "grain", "numba", "scipy"})


def test_a_whole_run_loads_no_framework_but_its_own_and_draws_nothing(runs, tmp_path):
    run = runs.start(
        tmp_path / "run",
        {"steps": 2, "optim.warmup_steps": 1},
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert not imported(run.succeed().output) & NEVER


def cost(statement: str) -> tuple[int, int]:
    """How many modules an import loads, and the microseconds that they take themselves."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    own = re.findall(r"^import time: +(\d+) \|", done.stderr, re.MULTILINE)
    return len(own), sum(map(int, own))


# Modules, and time, over those of the frameworks alone. First measured were 1.2 and 1.3 for the
# train step, 1.8 and 1.9 for all of pretraining, with checkpoints, data and telemetry.
BUDGETS = {
    "xtra_jax.training.step": (1.3, 2.0),
    "xtra_jax.training.pretrain": (1.9, 3.0),
}


def test_importing_ours_costs_little_beside_the_frameworks_it_is_made_of():
    """Against them in the same run, the least of three tries of each, taken in turns."""
    statements = {None: "import jax, flax, optax"} | {name: f"import {name}" for name in BUDGETS}
    tries = [{name: cost(text) for name, text in statements.items()} for _ in range(3)]
    modules, times = (
        {name: min(one[name][i] for one in tries) for name in statements} for i in range(2)
    )
    for name, (more_modules, longer) in BUDGETS.items():
        assert modules[name] < more_modules * modules[None], name
        assert times[name] < longer * times[None], name


def test_an_installed_pytorch_is_left_alone(tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was loaded')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    script = "import xtra_jax.training.pretrain, sys; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
