"""What the compiler says of a config's train step on a topology, as JSON.

    python -m tests.plan.compiled_ahead CONFIG TOPOLOGY [KEY=VALUE ...]

compiles what `xtra pretrain` would with this config and these values, and no more is needed for it
than `cuda_environment.NEEDS`.
"""

from __future__ import annotations

import json
import sys

from benchmarks.gpu_layouts import batch_minor
from xtra_jax.config import load, model_spec
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.topologies import devices_of, find_topology
from xtra_jax.plan.compile import compile_step
from xtra_jax.training.attention_choice import attention_by_tower

STEPS = 1000  # of the run: numbers of its schedule, which change no layout and no memory


def compiled_ahead(path: str, topology: str, *overrides: str) -> dict:
    config = load(path, dict(pair.split("=", 1) for pair in overrides))
    chips = find_topology(topology)
    mesh = make_mesh(dict(config.mesh), devices_of(chips))
    attempt = compile_step(config, chips, mesh, STEPS, lambda note: print(note, file=sys.stderr))
    spec = model_spec(config)
    tokens = spec.grid.num_tokens
    if config.model.drop_last_block:
        tokens -= spec.grid.tokens_per_block
    width = min(spec.encoder.width, spec.predictor.width)
    return {
        "attention": attention_by_tower(config, spec, mesh),
        "per_chip": attempt.per_chip,
        "bytes": attempt.required,
        "batch_minor": batch_minor(attempt.module, attempt.per_chip, tokens, width),
    }


if __name__ == "__main__":
    print(json.dumps(compiled_ahead(*sys.argv[1:])))
