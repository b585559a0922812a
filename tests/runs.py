"""Real runs for the tests: tiny, started as commands of their own, killed, compared bit for bit."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from xtra_jax.config import load
from xtra_jax.data.digits import prepare_digits
from xtra_jax.training.checkpoint import checkpoint_directory, find_checkpoint
from xtra_jax.training.restore import by_name, complete_steps
from xtra_jax.training.telemetry import read_metrics

ROOT = Path(__file__).parents[1]

# One layer compiles in seconds. Stochastic depth, so that its randomness must resume too.
TINY = {
    "steps": 20,
    "optim.warmup_steps": 4,
    "batch_size": 16,
    "log_every": 1,
    "eval_every": 0,
    "save_every": 3,
    "keep_checkpoints": 2,
    "model.width": 32,
    "model.depth": 1,
    "model.num_heads": 4,
    "model.image_size": 16,
    "model.patch_size": 4,
    "model.drop_path": 0.3,
    "predictor.width": 32,
    "predictor.hidden": 16,
    "predictor.depth": 1,
    "predictor.num_heads": 4,
    "head.hidden": 16,
    "data.eval_resize": 16,
    "data.eval_split": "test[:20]",
    "data.num_workers": 0,
}

# A restart costs the imports, and not again what was compiled before.
_CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

Overrides = dict[str, object]

# What gloo prints when processes meet, from several threads at once: its lines may be torn.
_OF_GLOO = r"(\[Gloo\]|Rank|is|connected|to|peer|ranks|Expected|number|of|[\s\d.:])*"


class Run:
    """A command that is running, or has run, and what it prints."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, **how):
        self.log = log
        self.began = time.monotonic()
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, **how
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def sentence(self) -> str:
        """What the command says of its end, which is one line and no traceback."""
        assert "Traceback" not in self.output, self.output
        lines = [line for line in self.output.splitlines() if line.startswith("xtra: ")]
        assert len(lines) == 1, self.output
        return lines[0]

    @property
    def own_lines(self) -> list[str]:
        """What the command itself prints."""
        return [line for line in self.output.splitlines() if not re.fullmatch(_OF_GLOO, line)]

    def wait(self, timeout: float = 300) -> int:
        """The exit code."""
        return self.process.wait(timeout)

    def succeed(self, timeout: float = 300) -> Run:
        assert self.wait(timeout) == 0, self.output
        return self

    def kill(self, signal_: int = signal.SIGKILL) -> None:
        self.process.send_signal(signal_)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 300) -> bool:
        """Looks a thousand times a second; False if the run ended first."""
        end = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                return condition()
            assert time.monotonic() < end, self.output
            time.sleep(0.001)
        return True

    def step(self) -> int:
        """The last step that it told."""
        return max(map(int, re.findall(r"^step (\d+)/", self.output, re.MULTILINE)), default=0)

    def continued_from(self) -> int | None:
        found = re.search(r"^continuing from step (\d+) ", self.output, re.MULTILINE)
        return found and int(found[1])


class Runs:
    """Starts tiny runs, which share a prepared data set and a cache of compiled programs."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0
        self._data = folder / "data"
        self._cache = folder / "compiled"
        self._running: list[Run] = []
        prepare_digits(str(self._data))

    def overrides(self, overrides: Overrides | None = None) -> Overrides:
        return TINY | {"data.data_dir": str(self._data)} | (overrides or {})

    def config(self, overrides: Overrides | None = None) -> ConfigDict:
        return load("configs/demo.py", self.overrides(overrides))

    def start(
        self,
        workdir: Path | str,
        overrides: Overrides | None = None,
        *,
        devices: int = 1,
        arguments: tuple[str, ...] = (),
        record: Path | None = None,
        environment: dict[str, str] | None = None,
        cached: bool = True,
        **how,
    ) -> Run:
        """Starts `xtra pretrain` on simulated devices.

        Args:
            record: a folder for what each step sees (see tests/seen.py).
            how: arguments of `subprocess.Popen`.
        """
        module = ["xtra_jax"] if record is None else ["tests.seen", str(record)]
        keys = [f"--config.{key}={value}" for key, value in self.overrides(overrides).items()]
        command = [sys.executable, "-m", *module, "pretrain", "--config=configs/demo.py", *keys]
        return self._start(
            [*command, f"--workdir={workdir}", *arguments], devices, environment, cached, **how
        )

    def start_probe(
        self,
        checkpoint: Path | str,
        out: Path | str,
        overrides: Overrides | None = None,
        *,
        devices: int = 1,
        arguments: tuple[str, ...] = (),
    ) -> Run:
        """Starts `xtra probe` on the digits."""
        settings = {"data.data_dir": str(self._data), **(overrides or {})}
        keys = [f"--config.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "xtra_jax", "probe", "--config=configs/probe.py:digits"]
        where = [f"--checkpoint={checkpoint}", f"--out={out}"]
        return self._start([*command, *keys, *where, *arguments], devices, None, True)

    def _start(
        self,
        command: list[str],
        devices: int,
        environment: dict[str, str] | None,
        cached: bool,
        **how,
    ) -> Run:
        settings = {"jax_platforms": "cpu", "jax_num_cpu_devices": devices}
        if cached:
            settings |= _CACHE | {"jax_compilation_cache_dir": self._cache}
        variables = {name.upper(): str(value) for name, value in settings.items()}
        self._count += 1
        run = Run(
            command,
            os.environ | {"PYTHONPATH": str(ROOT)} | variables | (environment or {}),
            self._folder / f"{self._count}.log",
            **how,
        )
        self._running.append(run)
        return run

    def start_two(
        self,
        workdir: Path,
        overrides: Overrides | None = None,
        *,
        devices: int = 2,
        second_workdir: Path | None = None,
        second: Overrides | None = None,
        **how,
    ) -> tuple[Run, Run]:
        """Starts one run of two processes, each with this many devices.

        Args:
            second_workdir, second: what only the second process is told, by mistake.
        """
        port = free_port()

        def process(number: int, workdir: Path, overrides: Overrides | None) -> Run:
            where = ("--coordinator", f"127.0.0.1:{port}", "--num_processes", "2")
            arguments = (*where, "--process_id", str(number))
            return self.start(workdir, overrides, devices=devices, arguments=arguments, **how)

        mistaken = {**(overrides or {}), **(second or {})}
        return process(0, workdir, overrides), process(1, second_workdir or workdir, mistaken)

    def close(self) -> None:
        for run in self._running:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()

    @contextmanager
    def cache_here(self) -> Iterator[None]:
        """Lets the programs that this process compiles share the cache."""
        before = {name: getattr(jax.config, name) for name in _CACHE}
        try:
            for name, value in (_CACHE | {"jax_compilation_cache_dir": str(self._cache)}).items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def on(data: int, fsdp: int, tensor: int) -> Overrides:
    """The overrides for a mesh."""
    return {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def complete(workdir: Path) -> list[int]:
    """The steps of a run's complete checkpoints."""
    directory = checkpoint_directory(workdir)
    return complete_steps(directory) if directory.exists() else []


def temporary(workdir: Path) -> set[int]:
    """The steps whose checkpoints are being written, or removed, or were when the run died."""
    suffix = ".orbax-checkpoint-tmp"
    found = Path(checkpoint_directory(workdir)).glob(f"*{suffix}")
    return {int(path.name.removesuffix(suffix)) for path in found}


def saved_state(workdir: Path, step: int | None = None) -> dict[tuple[str, ...], np.ndarray]:
    """Parameters, moments and step of a checkpoint, by the names that lead to them."""
    path = find_checkpoint(workdir, step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree
    )
    return by_name(handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)))


def assert_same_state(ours: dict, theirs: dict) -> None:
    """Equal bit for bit, parameters and moments alike."""
    assert ours.keys() == theirs.keys() and any(name[0] == "opt_state" for name in ours)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], err_msg="/".join(name))


def told(workdir: Path) -> list[dict[str, float]]:
    """A run's metrics without those that measure time."""
    timing = {"time", "images_per_s", "step_ms", "compute", "input_wait", "host"}
    return [{k: v for k, v in m.items() if k not in timing} for m in read_metrics(workdir)]


def assert_same_curve(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    """The same steps, the training and the validation loss equal but for rounding."""
    for metric in ("loss", "validation/loss"):
        a, b = (
            {line["step"]: line[metric] for line in told(workdir) if metric in line}
            for workdir in (ours, theirs)
        )
        assert a.keys() == b.keys() and (a or metric != "loss")
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=tolerance)
