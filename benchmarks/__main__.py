"""Runs the benchmarks and prints, and with --out writes, what they measured."""

from __future__ import annotations

import argparse
import json
import os
import platform

import jax

from benchmarks import input_pipeline, probe_sweep, train_step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("step", "input", "sweep"),
        default="step",
        help="what to time (step)",
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed turns per case (15)")
    parser.add_argument("--out", help="a JSON file for the results")
    args = parser.parse_args()
    device = jax.devices()[0]
    result = {
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    if args.what == "input":
        result |= input_pipeline.run(args.repeats)
        input_pipeline.show(result)
    else:
        job = probe_sweep if args.what == "sweep" else train_step
        result |= job.run(args.repeats)
        for name, value in result.items():
            if name != "spec":
                print(f"{name:26}{value:.4g}" if isinstance(value, float) else f"{name:26}{value}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(result, file, indent=2)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
