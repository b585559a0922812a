"""Seconds from the command to the end of the first step, and where they go.

Each case is a process of its own that does what `xtra pretrain` does on the digits until its first
step has been taken: without a cache of compiled programs, with an empty one, and with what the
process before has left in it. Beside the seconds on the clock are those of processor time, which
other work on the machine changes less.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

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

    Processor seconds are under "cpu STAGE" where they are known, and "cpu total".
    """
    from xtra_jax.data.digits import prepare_digits

    found: dict = {"case": "from the command to the first step of pretraining, digits"}
    with tempfile.TemporaryDirectory() as folder:
        prepare_digits(f"{folder}/data")
        for model in models:
            times: dict[str, list[dict]] = {cache: [] for cache in CACHES}
            for repeat in range(repeats):
                kept = {"none": "", **dict.fromkeys(("empty", "full"), f"{folder}/{model}{repeat}")}
                for cache in CACHES:
                    times[cache].append(_timed(model, kept[cache], folder))
            found[model] = {
                cache: {name: statistics.median(t[name] for t in turns) for name in turns[0]}
                for cache, turns in times.items()
            }
            found[model]["no_cache_over_full_cache"] = statistics.median(
                none["total"] / full["total"]
                for none, full in zip(times["none"], times["full"], strict=True)
            )
    return found


def show(found: dict) -> None:
    for model in found.keys() & MODELS.keys():
        print(f"{model}: seconds to the first step{''.join(f'{cache:>16}' for cache in CACHES)}")
        for stage in (*STAGES, "total"):
            cells = (_cell(found[model][cache], stage) for cache in CACHES)
            print(f"  {stage:{len(model) + 25}}{''.join(cells)}")


def _cell(times: dict[str, float], stage: str) -> str:
    cpu = times.get(f"cpu {stage}")
    return f"{times[stage]:.2f}{'' if cpu is None else f' ({cpu:.1f})'}".rjust(16)


def _timed(model: str, cache: str, folder: str) -> dict[str, float]:
    """Starts a process, which prints where its time went."""
    command = [sys.executable, "-m", "benchmarks.startup", model, cache, folder, repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
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
    return spent | cpu | {"total": total}


if __name__ == "__main__":
    model, cache, folder, command_given = sys.argv[1:]
    print(json.dumps(_start(model, cache, folder, float(command_given))), flush=True)
