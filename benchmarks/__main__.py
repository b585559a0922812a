"""Times a case, prints what was measured, and writes it with --out.

Steps, attention and compiling are timed in several ways, in turns; ratios are to the baseline of
the same turns. See `benchmarks/cases.py` for the ways of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform

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


def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    device = jax.devices()[0]
    result = {
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load_before": os.getloadavg(),
    }
    options = {
        name: value
        for name, value in vars(args).items()
        if name not in ("case", "repeats", "out") and value is not None
    }
    if "ways" in options:
        options["ways"] = tuple(options["ways"])
    result |= _CASES[args.case].run(args.repeats, **options)
    result["load_after"] = os.getloadavg()
    getattr(_CASES[args.case], "show", _show)(result)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(result, file, indent=2)


_CASES = {
    "step": train_step,
    "attention": attention,
    "input": input_pipeline,
    "checkpoint": checkpoint,
    "compile": compile_time,
    "startup": startup,
    "sweep": probe_sweep,
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(case="step", repeats=15, out=None)
    parsers = parser.add_subparsers(metavar="CASE")
    for name, module in _CASES.items():
        what = module.__doc__.splitlines()[0]
        case = parsers.add_parser(name, help=what, description=what)
        case.set_defaults(case=name)
        case.add_argument("--out", help="a JSON file for the results")
        repeats = 3 if name in ("startup", "compile", "checkpoint") else 15
        case.add_argument("--repeats", type=int, default=repeats, help="timed turns (%(default)s)")
        if name in ("step", "attention", "compile", "checkpoint"):
            case.add_argument("--variant", choices=cases.VARIANTS, help="of the encoder (tiny)")
        if name in ("step", "attention", "compile"):
            case.add_argument("--batch", dest="batch_size", type=int, help="images (16)")
            default = getattr(module, "WAYS", attention.KINDS[:2])
            case.add_argument("--ways", nargs="+", metavar="WAY", help=f"({' '.join(default)})")
            case.add_argument("--baseline", metavar="WAY", help="for the ratios (the first)")
        if name == "step":
            case.add_argument("--image_size", type=int, help="pixels, so how many tokens")
            case.add_argument("--depth", type=int, help="of the encoder (the variant's)")
        if name == "attention":
            case.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32)")
    return parser.parse_args(arguments)


def _show(result: dict) -> None:
    for name, value in result.items():
        if name not in ("ways", "spec", "seconds_all"):
            print(f"{name.replace('_', ' '):22}{_text(value)}")
    for way, row in result.get("ways", {}).items():
        print(f"\n{way}")
        for name, value in row.items():
            if not name.endswith("_all") and value is not None:
                print(f"  {name.replace('_', ' '):32}{_text(value)}")


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
