"""Times a case, prints what was measured, and writes it with --out.

Steps, attention and compiling are timed in several ways, in turns; ratios are to the baseline of
the same turns. See `benchmarks/cases.py` for the ways of a step. Every case prints images/s, model
FLOPs utilisation (where the peak rate of the device is known), peak memory and a ratio to a
baseline of the same run, as far as they apply; `python -m benchmarks CASE --help` says which do
not, and why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

import jax

from benchmarks import (
    attention,
    cases,
    checkpoint,
    compile_time,
    input_pipeline,
    probe_sweep,
    startup,
    train_step,
)
from benchmarks.command import Parser, at_least, check_writable, exit_code
from benchmarks.device import here
from benchmarks.show import show


def main(arguments: list[str] | None = None) -> int:
    """Runs a case; returns the exit code."""
    return exit_code(lambda: _run(_arguments(arguments)))


def _run(args: argparse.Namespace) -> None:
    if args.out:
        check_writable(args.out)
    options = {
        name: value
        for name, value in vars(args).items()
        if name not in ("case", "repeats", "out") and value is not None
    }
    if "ways" in options:
        options["ways"] = tuple(options["ways"])
    load_before = os.getloadavg()
    case = _CASES[args.case]
    found = case.run(args.repeats, **options)
    device = here()
    machine = {
        "device": f"{device.platform}: {device.kind}, {os.cpu_count()} cores",
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load_before": load_before,
        "load_after": os.getloadavg(),
    }
    show(machine)
    getattr(case, "show", show)(found)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(machine | found, file, indent=2)


_CASES = {
    "step": train_step,
    "attention": attention,
    "input": input_pipeline,
    "checkpoint": checkpoint,
    "compile": compile_time,
    "startup": startup,
    "sweep": probe_sweep,
}


_DEFAULT_WAYS = {
    "step": train_step.default_ways,
    "attention": lambda: attention.WAYS,
    "compile": lambda: compile_time.WAYS,
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(case="step", repeats=15, out=None)
    parsers = parser.add_subparsers(metavar="CASE")
    for name, module in _CASES.items():
        case = parsers.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        case.set_defaults(case=name)
        case.add_argument("--out", help="a JSON file for the results")
        repeats = 3 if name in ("startup", "compile", "checkpoint") else 15
        case.add_argument(
            "--repeats", type=at_least(1), default=repeats, help="timed turns (%(default)s)"
        )
        if name in ("step", "attention", "compile", "checkpoint"):
            case.add_argument("--variant", choices=cases.VARIANTS, help="of the encoder (tiny)")
        if name in _DEFAULT_WAYS:
            case.add_argument("--batch", dest="batch_size", type=at_least(1), help="images (16)")
            ways = " ".join(_DEFAULT_WAYS[name]())
            case.add_argument("--ways", nargs="+", metavar="WAY", help=f"({ways})")
            case.add_argument("--baseline", metavar="WAY", help="for the ratios (the first)")
        if name == "step":
            case.add_argument("--image_size", type=at_least(1), help="pixels, so how many tokens")
            case.add_argument("--depth", type=at_least(1), help="of the encoder (the variant's)")
        if name == "attention":
            case.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32)")
    return parser.parse_args(arguments)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
