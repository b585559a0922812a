"""Does stochastic depth on fixed-size subsets learn as well as Bernoulli's? The demo, both ways.

    python -m benchmarks.subset_depth --out FILE.json

trains the demo's model on digits over several seeds with either, and compares their loss curves:
training loss (what stochastic depth disturbs) and validation loss (without it). Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks.command import Parser, at_least, check_writable, exit_code
from xtra_jax.config import load, model_spec
from xtra_jax.data.digits import prepare_digits
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.training.pretrain import make_evaluation, on_devices, training_batches
from xtra_jax.training.recipe import (
    execution_of,
    make_optimizer,
    make_schedule,
    objective_of,
    open_training_source,
)
from xtra_jax.training.step import init_state, make_train_step

MODES = ("bernoulli", "subset")
LOSSES = ("loss", "validation/loss")


class Trainer:
    """The demo with one of the two ways, compiled once for all seeds."""

    def __init__(self, mode: str, steps: int, rate: float, data_dir: str):
        self.config = load(
            "configs/demo.py",
            {
                "steps": steps,
                "optim.warmup_steps": steps // 10,
                "model.drop_path": rate,
                "model.drop_path_mode": mode,
                "data.data_dir": data_dir,
            },
        )
        self.spec, self.mesh = model_spec(self.config), make_mesh({"data": 1}, jax.devices()[:1])
        schedule = make_schedule(self.config, steps)
        optimizer = make_optimizer(self.config, schedule)
        how = objective_of(self.config), execution_of(self.config, self.mesh)

        def step(state, batch, seed):
            train_step = make_train_step(self.spec, optimizer, *how, schedule=schedule, seed=seed)
            return train_step(state, batch)

        self._step = jax.jit(step, donate_argnums=0)
        self._init = jax.jit(lambda seed: init_state(self.spec, optimizer, jax.random.key(seed)))

    def run(self, seed: int, evaluate) -> dict[str, dict[int, float]]:
        """Step to loss, for either loss; each point of training is a mean over a tenth."""
        config, steps = self.config, self.config.steps
        config.seed = seed
        source = open_training_source(config)
        state, losses = self._init(seed), []
        batches = on_devices(training_batches(config, self.spec, source, self.mesh, 0), self.mesh)
        with contextlib.closing(batches):
            for _ in range(steps):
                state, metrics = self._step(state, next(batches), seed)
                losses.append(float(metrics["loss"]))
        tenth = steps // 10
        means = np.mean(np.reshape(losses[: 10 * tenth], (10, tenth)), axis=1)
        return {
            "loss": {(i + 1) * tenth: float(mean) for i, mean in enumerate(means)},
            "validation/loss": {steps: evaluate(state.params)["loss"]},
        }


def compare(curves: dict[str, list[dict]]) -> dict:
    """Means and standard deviations over the seeds, and the difference in standard errors.

    The seeds are paired: a pair begins with the same weights and sees the same batches.
    """
    found = {}
    for name in LOSSES:
        for step in curves[MODES[0]][0][name]:
            values = {mode: [curve[name][step] for curve in curves[mode]] for mode in MODES}
            differences = [b - a for a, b in zip(*values.values(), strict=True)]
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            found.setdefault(name, {})[step] = {
                **{mode: statistics.fmean(values[mode]) for mode in MODES},
                **{f"{mode}_stdev": statistics.stdev(values[mode]) for mode in MODES},
                "difference": statistics.fmean(differences),
                "standard_error": error,
            }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compares both ways; returns the exit code."""
    return exit_code(lambda: _run(_arguments(arguments)))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.subset_depth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=at_least(2), default=5, help="pairs of runs (5)")
    parser.add_argument("--steps", type=at_least(10), default=450, help="of each run (450)")
    parser.add_argument("--rate", type=float, default=0.3, help="model.drop_path (0.3)")
    parser.add_argument("--out", help="a JSON file for the results")
    return parser.parse_args(arguments)


def _run(args: argparse.Namespace) -> None:
    if args.out:
        check_writable(args.out)
    curves: dict[str, list[dict]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        prepare_digits(folder)
        trainers = {mode: Trainer(mode, args.steps, args.rate, folder) for mode in MODES}
        first = trainers[MODES[0]]
        evaluate = make_evaluation(first.config, first.spec, first.mesh)
        for seed in range(args.seeds):
            for mode, trainer in trainers.items():
                curve = trainer.run(seed, evaluate)
                curves[mode].append(curve)
                print(seed, mode, *(list(curve[name].values())[-1] for name in LOSSES), flush=True)
            if args.out:
                Path(args.out).write_text(json.dumps(vars(args) | {"curves": curves}, indent=1))
    found = compare(curves)
    for name, steps in found.items():
        print(f"{name:18}{'bernoulli':>20}{'subset':>20}{'difference':>22}")
        for step, row in steps.items():
            cells = (f"{row[mode]:.4f} ± {row[f'{mode}_stdev']:.4f}" for mode in MODES)
            cells = (*cells, f"{row['difference']:+.4f} ± {row['standard_error']:.4f}")
            print(f"  step {step:<11}{''.join(f'{cell:>20}' for cell in cells)}")
    if args.out:
        result = vars(args) | {"compared": found, "curves": curves}
        Path(args.out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(main())
