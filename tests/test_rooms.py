"""The rooms of the package: who may import whom, and what may be imported from outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "xtra_jax"

CONFIG = {"config", "config_rules", "config_overrides"}
BELOW_TRAINING = {"data", "parallel", "model", "errors"}
BELOW_INTEROP = BELOW_TRAINING | CONFIG | {"training"}
BELOW_JOBS = BELOW_INTEROP | {"interop"}
JOBS = {"inspection", "plan", "probing", "reconstruct"}
OF_ENCODERS = {"features", "evaluate", "export"}  # jobs that use what probes do
OF_RUNS = {"report"}  # what probes and pictures found out, on one page

# Each room, and the rooms that it may import, its own apart.
MAY_IMPORT = {
    "errors": set(),
    "model": {"errors"},
    "data": {"errors"},
    "parallel": {"errors"},
    "config_overrides": {"errors"},
    "config_rules": {"config_overrides", "model", "errors"},
    "config": {"config_overrides", "config_rules", "errors"},
    "training": BELOW_TRAINING | CONFIG,
    "interop": BELOW_INTEROP,
    **dict.fromkeys(JOBS, BELOW_JOBS),
    **dict.fromkeys(OF_ENCODERS, BELOW_JOBS | {"probing"}),
    **dict.fromkeys(OF_RUNS, BELOW_JOBS | {"probing", "reconstruct"}),
    "demo": BELOW_JOBS | JOBS,  # runs the other jobs one after another
    "command_line": {"errors"},
    "cli": {"command_line"} | BELOW_JOBS | JOBS | OF_ENCODERS | OF_RUNS | {"demo"},
    "__main__": {"cli"},
    "__init__": BELOW_JOBS | JOBS,
}

# What runs where only jax, flax, optax and numpy are installed.
LIGHT_FILES = sorted(PACKAGE.glob("model/*.py")) + [
    PACKAGE / "training" / name
    for name in ("__init__.py", "step.py", "optimizer.py", "schedule.py")
]
LIGHT_IMPORTS = {"jax", "flax", "optax", "numpy", "xtra_jax"} | sys.stdlib_module_names

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file):
    """The dotted names that a file imports anywhere, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            if node.module == "xtra_jax":
                yield from (f"xtra_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(file):
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file):
    room = room_of(file)
    assert room in MAY_IMPORT, f"{room} is a new room: give it a place in the order of rooms"
    used = {name.split(".")[1] for name in imports(file) if name.startswith("xtra_jax.")}
    assert used - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_imports_tensorflow_or_pytorch(file):
    assert not {name.split(".")[0] for name in imports(file)} & {"tensorflow", "torch"}


@pytest.mark.parametrize("file", LIGHT_FILES, ids=name_of)
def test_the_model_and_the_train_step_need_only_jax_flax_optax_and_numpy(file):
    assert {name.split(".")[0] for name in imports(file)} <= LIGHT_IMPORTS


def loaded_by(module):
    """The top-level modules in memory after an import in a fresh process."""
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"jax", "flax", "numpy", "tensorflow", "torch", "tensorflow_datasets", "grain"}
    assert not loaded_by("xtra_jax") & heavy


def test_the_train_step_loads_no_data_pipeline():
    assert not loaded_by("xtra_jax.training.step") & {"PIL", "grain", "tensorflow_datasets"}


def test_reading_a_config_loads_neither_jax_nor_tensorflow_nor_pytorch():
    assert not loaded_by("xtra_jax.config") & {"jax", "flax", "tensorflow", "torch"}
