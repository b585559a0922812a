"""What the compiler says of XTRA-H/14's train step on one H100 (or TPU), without any.

    python -m benchmarks.gpu_ahead OUT.jsonl [CASE ...] [--depths 4,8] [--batch 64]

Compiles variants of the step ahead of time and appends, as JSON lines, the peak of their memory and
the bytes that they move. Both grow by the same amount with every layer, so two shallow programs
give the deep one. What is there is not compiled again. Needs `pip install '.[cuda]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu_layouts import batch_minor
from benchmarks.gpu_settings import Settings
from benchmarks.gpu_step import (
    compile_step,
    flops_facts,
    predicted,
    program_facts,
    spec_of,
)
from xtra_jax.parallel.program import module_of
from xtra_jax.parallel.topologies import devices_of, find_topology

# The variants of the design's table, and those that decide on a default.
VARIANTS = {
    "base": {},
    "xla": dict(attention="xla"),
    "no_drop": dict(drop_path="none"),
    "subset": dict(drop_path="subset"),
    "dots": dict(remat="dots"),
    "full": dict(remat="full"),
    "scan": dict(scan=True),
    "scan_dots": dict(scan=True, remat="dots"),
    "scan_full": dict(scan=True, remat="full"),
    "xla_no_drop": dict(attention="xla", drop_path="none"),
    "predictor_float32": dict(predictor_dtype="float32", attention="xla"),
    "all_blocks": dict(drop_last_block=False),
}


def compile_case(settings: Settings, topology: str) -> dict:
    """The facts of one compiled step, and how long compiling took."""
    from jax.sharding import SingleDeviceSharding

    chips = find_topology(topology)
    device = devices_of(chips)[0]
    begin = time.monotonic()
    compiled, _ = compile_step(settings, SingleDeviceSharding(device), chips.compiler_options)
    seconds = time.monotonic() - begin
    module = module_of(compiled)
    facts = program_facts(compiled, module) | flops_facts(settings)
    spec = spec_of(settings)
    tokens = spec.grid.num_tokens - settings.drop_last_block * spec.grid.tokens_per_block
    width = min(spec.encoder.width, spec.predictor.width)
    transposed = batch_minor(module, settings.batch, tokens, width)
    return {
        "topology": chips.name,
        "settings": dataclasses.asdict(settings),
        "compile_seconds": round(seconds, 1),
        "float32_batch_minor": transposed,
        **facts,
        **predicted(facts, settings, chips.accelerator),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(VARIANTS)} (all)")
    parser.add_argument("--model", default="h14")
    parser.add_argument("--depths", default="4,8", help="0 for the model's own (4,8)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--topology", default="h100:1")
    args = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    out = Path(args.out)
    lines = out.read_text().splitlines() if out.exists() else []
    known = [(line["topology"], line["settings"]) for line in map(json.loads, lines)]
    for name in args.cases or VARIANTS:
        for depth in map(int, args.depths.split(",")):
            settings = Settings(args.model, depth, args.batch, **VARIANTS[name])
            if (args.topology, dataclasses.asdict(settings)) in known:
                continue
            print(f"{name}, depth {depth} ...", file=sys.stderr, flush=True)
            found = {"case": name, **compile_case(settings, args.topology)}
            with out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
