"""Puts the questions to a GPU, each case in a process of its own, for so many minutes.

    python -m benchmarks.gpu FOLDER [--minutes 9.5]

Results are lines of FOLDER/results.jsonl, written as they come; FOLDER/log.txt has what the cases
said, FOLDER/summary.md the tables, and traces lie beside them. A further call goes on where the
last one stopped: what is there is not measured again. What failed is tried once more, but for want
of memory. What to expect of three calls of ten minutes is written in `gpu_questions`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import gpu_table
from benchmarks.gpu_questions import REAL, TOY, Case, questions

RESULTS, LOG = "results.jsonl", "log.txt"
CHILD = (sys.executable, "-m", "benchmarks.gpu_case")
LONGEST_LOG = 8 * 2**20  # bytes after which cases' output is dropped
GRACE = 5.0  # seconds between asking a case to end and ending it
ATTEMPTS = 2  # at a case that fails for another reason than memory
MORE_TIME = 1.5  # what the second attempt gets of the first one's limit, where that was too little


class Results:
    """The lines of a folder's results: read, mended where a call was killed, and added to."""

    def __init__(self, folder: Path, device: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RESULTS
        self.device = device
        self.lines = read(self.path)

    @property
    def known(self) -> dict[str, dict]:
        """What was measured on this device, by case; of several attempts the last."""
        return {line["case"]: line for line in self.lines if line["machine"] == self.device}

    def attempt(self, case: Case) -> Case | None:
        """The case as it is to be tried now; None where it was measured, or given up."""
        failed = [
            line
            for line in self.lines
            if (line["machine"], line["case"]) == (self.device, case.name) and "error" in line
        ]
        last = self.known.get(case.name)
        if last is None:
            return case
        if "error" not in last or last["failure"] == "memory" or len(failed) >= ATTEMPTS:
            return None
        if last["failure"] == "time":  # it will not begin where as little is left as last time
            return dataclasses.replace(
                case, limit=MORE_TIME * last["limit"], needs=max(case.needs, last["limit"])
            )
        return case

    def add(self, case: Case, result: dict) -> None:
        line = {"case": case.name, "machine": self.device, **dataclasses.asdict(case), **result}
        self.lines.append(line)
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


def read(path: Path) -> list[dict]:
    """The results of a file, without a last line that was cut off."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def device_name(platform: str) -> str:
    """The GPU's name by the driver, which asks for nothing of the GPU itself."""
    if platform == "cpu":
        return "cpu"
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total",
        "--format=csv,noheader",
    ]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said.splitlines()[0].strip() if said.strip() else "a GPU that nvidia-smi does not name"


def environment(args: argparse.Namespace, case: Case, scratch: str) -> dict[str, str]:
    """What a case runs under: the flags that it asks about, and caches of compiled programs.

    Args:
        scratch: a folder of this case's own. PyTorch's compiler gets its cache there: a case that
            is ended half way leaves half a file, which would fail all later ones.
    """
    env = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",
        "TRITON_CACHE_DIR": f"{scratch}/triton",
    }
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
    env["JAX_PLATFORMS"] = args.platform  # where there is no GPU, a case fails and runs on no CPU
    if args.platform == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = "-1"
        flags = ["--xla_backend_optimization_level=0"]  # to try it only
    else:
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        # What XLA tried out is kept: deep programs have the shallow ones' products, and variants
        # differ by what they are, not by what trying drew. XLA writes these files in one stroke.
        tried = f"{tempfile.gettempdir()}/xtra_gpu_autotuning"
        Path(tried).mkdir(exist_ok=True)
        flags = [f"--xla_gpu_per_fusion_autotune_cache_dir={tried}", case.flags]
    env["XLA_FLAGS"] = " ".join(filter(None, [env.get("XLA_FLAGS", ""), *flags]))
    return env


def run_case(case: Case, folder: Path, args: argparse.Namespace, seconds: float) -> dict | None:
    """Runs one case.

    Args:
        seconds: left of the call.

    Returns:
        What it measured; or "error", and as "failure" whether it was for want of "memory", "time"
        or "other"; None where the call's own time ended it.
    """
    out = folder / "case.json"
    out.unlink(missing_ok=True)
    log = folder / LOG
    with (
        log.open("ab") as file,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        file.write(f"== {case.name}\n".encode())
        file.flush()
        start = file.tell() if log.stat().st_size < LONGEST_LOG else None
        child = subprocess.Popen(
            [*CHILD, json.dumps(dataclasses.asdict(case)), str(out), args.platform],
            stdout=file if start is not None else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if start is not None else subprocess.DEVNULL,
            env=environment(args, case, scratch),
            process_group=0,
        )
        begin = time.monotonic()
        try:
            code = child.wait(min(case.limit, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    took = {"took_seconds": round(time.monotonic() - begin, 1)}
    if out.exists():
        result = json.loads(out.read_text())
        out.unlink()
        if code != 0:
            took["afterwards"] = "cut off" if code is None else f"exit code {code}"
        return result | took
    if code is None and seconds < case.limit:
        return None
    if code is None:
        return {"error": f"not done after {case.limit:g} seconds", "failure": "time", **took}
    said = b"" if start is None else log.read_bytes()[start:]
    return {**_reason(code, said.decode(errors="replace")), **took}


def _end(child: subprocess.Popen) -> None:
    """Ends a case and whatever it started: nothing may hold the device when the next one begins."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        try:
            child.wait(patience)
            if number == signal.SIGKILL:
                return
        except subprocess.TimeoutExpired:
            continue


def _reason(code: int, said: str) -> dict:
    """Why a case failed, by the last traceback of its output, or else its last lines.

    Not by all of it: a compiler that tries kernels out tells of those that find no memory, too.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    begins = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    lines = lines[begins[-1] :] if begins else lines[-5:]
    for line in lines:
        if "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower():
            return {"error": f"out of memory: {line[:300]}", "failure": "memory"}
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return {"error": f"exit code {code}: {last[:300]}", "failure": "other"}


def next_case(
    args: argparse.Namespace, results: Results, skipped: set[str], seconds: float
) -> Case | None:
    """The first case in order that is not answered and can be done in the time that is left."""
    for case in questions(results.known, TOY if args.tiny else REAL):
        if args.only and not any(fnmatch.fnmatch(case.name, one) for one in args.only):
            continue
        if args.limit:
            case = dataclasses.replace(case, limit=args.limit, needs=min(case.needs, args.limit))
        case = results.attempt(case)
        if case and case.name not in skipped and case.needs <= seconds:
            return case
    return None


def measure(args: argparse.Namespace) -> Iterator[tuple[Case, dict | None]]:
    """Runs cases until there are none, or no time for one; yields each with its result.

    Raises:
        SystemExit: the device cannot be used: not even its rates can be measured.
    """
    end = time.monotonic() + 60 * args.minutes
    results = Results(args.folder, device_name(args.platform))
    cut: set[str] = set()
    unusable = 0
    while case := next_case(args, results, cut, end - time.monotonic()):
        result = run_case(case, args.folder, args, end - time.monotonic())
        yield case, result
        if result is None:
            cut.add(case.name)
        elif case.kind == "rates" and "error" in result:  # so will all others be
            unusable += 1
            if unusable == ATTEMPTS:
                log = args.folder / LOG
                sys.exit(f"This device cannot be used: {result['error']}; {log} has all of it")
        else:
            results.add(case, result)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="for the results")
    parser.add_argument("--minutes", type=float, default=9.5, help="of the whole call (9.5)")
    parser.add_argument("--only", nargs="+", help="patterns of cases' names, to run no others")
    parser.add_argument("--limit", type=float, help="seconds per case, instead of its own")
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy, to try the benchmark with")
    args = parser.parse_args()
    begin = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        for case, result in measure(args):
            said = "cut off: no time left" if result is None else gpu_table.line(result)
            print(f"[{time.monotonic() - begin:4.0f} s] {case.name}: {said}", flush=True)
    finally:
        summary = gpu_table.table(read(args.folder / RESULTS))
        (args.folder / "summary.md").write_text(summary)
        print(summary)


if __name__ == "__main__":
    main()
