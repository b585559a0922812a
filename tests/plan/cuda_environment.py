"""A Python that compiles for NVIDIA GPUs without one: found, or made once and kept.

jax compiles for a described GPU from 0.11 on, which needs Python 3.12; the tests also run where
Python is older, or jax has no CUDA. The environment holds what a config's train step is made with
and no more.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDS = (
    *("jax[cuda13]==0.11.2", "flax==0.12.12", "optax==0.2.8", "ml_collections==1.1.0"),
    *("etils[epath]==1.15.0", "pillow==13.0.0", "simplejpeg==1.9.0", "cloudpickle==3.1.2"),
)
PYTHONS = ("python3.12", "python3.13")
PLACE = ROOT / "build" / "cuda_environment"  # 5 GB; git ignores it


def has_cuda_plugin() -> bool:
    """Whether jax has its plugin for NVIDIA's GPUs; without any plugin, the package is missing."""
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:
        return False


def cuda_python() -> Path:
    """A Python with jax for CUDA; the test is skipped, with the reason, where none can be had."""
    if jax.__version_info__ >= (0, 11, 1) and has_cuda_plugin():
        return Path(sys.executable)
    python = PLACE / "bin" / "python"
    done = PLACE / "installed.txt"
    if done.exists() and done.read_text() == "\n".join(NEEDS):
        return python
    base = _base_python()
    if base is None:
        pytest.skip(f"compiling for H100 needs one of {', '.join(PYTHONS)}, and there is none")
    shutil.rmtree(PLACE, ignore_errors=True)
    subprocess.run([base, "-m", "venv", str(PLACE)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *NEEDS]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        shutil.rmtree(PLACE, ignore_errors=True)
        last = (installed.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"jax for CUDA can't be installed here: {last}")
    done.write_text("\n".join(NEEDS))
    return python


def _base_python() -> str | None:
    """A Python that is new enough, on the path or among pyenv's, and that runs."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    others = [
        str(path)
        for name in PYTHONS
        for path in sorted(versions.glob(f"{name.removeprefix('python')}.*/bin/python"))
    ]
    for name in (*PYTHONS, *others):
        found = shutil.which(name)
        if (
            found
            and subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0
        ):
            return found
    return None


def environment() -> dict[str, str]:
    """Under which that Python compiles, and looks for no GPU."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }
