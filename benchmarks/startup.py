"""Seconds from the command to the end of the first step, and where they go.

Each case is a process of its own that does what `xtra pretrain` does on the digits until its first
step has been taken: without a cache of compiled programs, with an empty one, and with what the
process before has left in it; speed is over the start without a cache, in the same turn. Beside the
seconds on the clock are those of processor time, which other work on the machine changes less.
Images/s and MFU do not apply: one step is taken, and what is timed is mostly not that step.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.device import here
from benchmarks.memory import host_peak_mib, jax_peak_mib
from xtra_jax.errors import RunFailed

MODELS = {
    "demo": ("configs/demo.py", {}),
    "base": (
        "configs/pretrain/xtra_b16_in1k.py",
        {
            "epochs": 0.0,
            "optim.warmup_epochs": 0.0,
            "batch_size": 2,
            "model.dtype": "float32",
            "data.dataset": "digits",
            "data.num_workers": 0,
        },
    ),
}
CACHES = ("none", "empty", "full")
BASELINE = "none"
# In the order in which a run comes by them. What is between them is "other".
STAGES = ("imports", "config", "data", "init", "trace", "lower", "compile", "first step", "other")
_OF_FUNCTIONS = {
    "open_training_source": "data",
    "make_evaluation": "data",
    "start": "init",
    "lower_train_step": "lower",
    "compile_with_notes": "compile",
}
_TRACING = "/jax/core/compile/jaxpr_trace_duration"


class _FirstStepTaken(Exception):
    pass


def run(repeats: int = 3, models: tuple[str, ...] = tuple(MODELS)) -> dict:
    """Medians over the repeats: seconds by model, then cache, then stage, and their "total".

    Processor seconds are under "cpu STAGE" where they are known, and "cpu total"; beside them are
    the ratios to the start without a cache, "speed over none", and the process's peaks of memory.

    Raises:
        RunFailed: a process ended before its first step.
    """
    from xtra_jax.data.digits import prepare_digits

    here()
    found: dict = {
        "case": "from the command to the first step of pretraining, digits",
        "baseline": f"cache {BASELINE}",
    }
    with tempfile.TemporaryDirectory() as folder:
        prepare_digits(f"{folder}/data")
        for model in models:
            times: dict[str, list[dict]] = {cache: [] for cache in CACHES}
            for repeat in range(repeats):
                kept = {"none": "", **dict.fromkeys(("empty", "full"), f"{folder}/{model}{repeat}")}
                for cache in CACHES:
                    times[cache].append(_timed(model, kept[cache], folder))
            found[model] = {cache: _summary(times[cache], times[BASELINE]) for cache in CACHES}
    return found


def _summary(turns: list[dict], base: list[dict]) -> dict[str, float]:
    medians = {name: statistics.median(t[name] for t in turns) for name in turns[0]}
    for kind in ("", "cpu "):
        total = f"{kind}total"
        ratios = [b[total] / a[total] for a, b in zip(turns, base, strict=True)]
        medians[f"{kind}speed over {BASELINE}"] = statistics.median(ratios)
    return medians


def show(found: dict) -> None:
    """Prints a table per model: seconds by stage and cache, in brackets of processor time."""
    print(f"{found['case']}; baseline: {found['baseline']}")
    for model in [name for name in MODELS if name in found]:
        rows = found[model]
        title = f"{model}: seconds to the first step"
        print(f"\n{title}{''.join(f'{cache:>16}' for cache in CACHES)}")
        for stage in (*STAGES, "total"):
            cells = (_cell(rows[cache], stage) for cache in CACHES)
            print(f"  {stage:{len(title) - 2}}{''.join(cells)}")
        for name in [name for name in rows[BASELINE] if name not in (*STAGES, "total")]:
            if name.startswith("cpu ") and name[4:] in (*STAGES, "total"):
                continue  # in brackets above
            cells = (f"{rows[cache][name]:16.4g}" for cache in CACHES)
            print(f"  {name:{len(title) - 2}}{''.join(cells)}")


def _cell(times: dict[str, float], stage: str) -> str:
    cpu = times.get(f"cpu {stage}")
    return f"{times[stage]:.2f}{'' if cpu is None else f' ({cpu:.1f})'}".rjust(16)


def _timed(model: str, cache: str, folder: str) -> dict[str, float]:
    """Starts a process, which prints where its time went."""
    command = [sys.executable, "-m", "benchmarks.startup", model, cache, folder, repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunFailed(
            f"a start of the model {model!r} ended with exit code {done.returncode} before its "
            "first step; what it said is above"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _start(model: str, cache: str, folder: str, command_given: float) -> dict[str, float]:
    """Starts a run and leaves it after its first step; seconds by stage."""
    from xtra_jax.config import load
    from xtra_jax.training import pretrain as job
    from xtra_jax.training.progress import Progress

    imported = time.time()
    spent = dict.fromkeys(STAGES, 0.0) | {"imports": imported - command_given}
    cpu = {"cpu imports": time.process_time()}

    def timed(function, stage):
        def call(*arguments, **options):
            begin, cpu_begin = time.time(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[stage] += time.time() - begin
                name = f"cpu {stage}"
                cpu[name] = cpu.get(name, 0.0) + time.process_time() - cpu_begin

        return call

    for name, stage in _OF_FUNCTIONS.items():
        setattr(job, name, timed(getattr(job, name), stage))
    traced: list[float] = []
    job.jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: traced.append(seconds) if event == _TRACING else None
    )

    class UntilTheFirstStep(Progress):
        def note(self, message: str) -> None:
            if message.startswith("first step in"):
                spent["first step"] = float(message.split()[3])
                raise _FirstStepTaken

    path, changes = MODELS[model]
    changes = changes | {
        "steps": 1,
        "optim.warmup_steps": 0,
        "eval_every": 0,
        "data.eval_split": "",
        "data.data_dir": f"{folder}/data",
        "compilation_cache": cache,
    }
    config = timed(load, "config")(path, changes)
    lowering = job.lower_train_step

    def lower(*arguments):
        traced.clear()
        lowered = lowering(*arguments)
        # The step's own tracing is the longest: what it calls is traced within it.
        spent["trace"] = max(traced)
        spent["lower"] -= spent["trace"]
        return lowered

    job.lower_train_step = lower
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        try:
            job.pretrain(config, workdir, progress=UntilTheFirstStep(1), show_parameters=False)
        except _FirstStepTaken:
            total = time.time() - command_given
            cpu["cpu total"] = time.process_time()
    spent["other"] = total - sum(spent.values())
    peaks = {"host peak mib": host_peak_mib()}
    if (of_device := jax_peak_mib()) is not None:
        peaks["device peak mib"] = of_device
    return spent | cpu | {"total": total} | peaks


if __name__ == "__main__":
    model, cache, folder, command_given = sys.argv[1:]
    print(json.dumps(_start(model, cache, folder, float(command_given))), flush=True)
