"""What a small train step costs by its compiled program: the figures, and recording them.

    JAX_PLATFORMS=cpu python -m tests.budgets

writes those of the jax installed into budgets.json. Do that when a step has become cheaper, or
dearer for a reason, and say in the commit which figure changed and why.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.parallel.hlo import Instruction, executions
from xtra_jax.parallel.program import memory, module_of
from xtra_jax.parallel.traffic import moves
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, init_state, make_train_step

FILE = Path(__file__).parent / "budgets.json"
BATCH = 32
ENCODER_LAYERS, PREDICTOR_LAYERS = 2, 1

# Activations outweigh the parameters, as in a real step, so that a pass over them shows.
SPEC = XTRASpec(
    EncoderSpec(Grid(32, 4, 2), 32, ENCODER_LAYERS, 4, drop_path=0.2),
    PredictorSpec(32, 32, PREDICTOR_LAYERS, 4),
    HeadSpec(32),
)

# Bytes of one layer's activations.
TOKENS = SPEC.grid.num_tokens - SPEC.grid.tokens_per_block
ACTIVATIONS = 4 * BATCH * TOKENS * SPEC.encoder.width

BFLOAT16 = dataclasses.replace(SPEC, dtype="bfloat16", predictor_dtype="bfloat16")
SUBSET = dataclasses.replace(
    SPEC, encoder=dataclasses.replace(SPEC.encoder, drop_path_mode="subset")
)

# The steps with a budget: the one that ships, and those that are other programs.
STEPS = {
    "default": (SPEC, Execution()),
    "remat_dots": (SPEC, Execution(remat="dots")),
    "scan_layers": (SPEC, Execution(scan_layers=True)),
    "bfloat16": (BFLOAT16, Execution()),
    "subset": (SUBSET, Execution()),
}


def version() -> str:
    """Of jax, as budgets are kept: compilers differ from one minor version to the next."""
    return ".".join(jax.__version__.split(".")[:2])


def compiled_step(name: str) -> jax.stages.Compiled:
    """One of `STEPS`, compiled for the CPU with its state donated."""
    optimizer = adamw(
        lambda step: 1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
    )
    spec, execution = STEPS[name]
    step = make_train_step(spec, optimizer, Objective(), execution, schedule=lambda step: 1e-4)
    state = jax.eval_shape(lambda: init_state(spec, optimizer, jax.random.key(0)))
    size = SPEC.grid.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.uint8),
        "weight": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
    }
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    # Machine code that is never run needs no optimisation; the program is the same.
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def measured(compiled: jax.stages.Compiled) -> dict[str, int]:
    """What a compiled step costs.

    Returns:
        "product_flops": of its matrix products, a multiply-add counting as two; "products": how
        many run; "attention_products": those of them with a batch, which only attention has;
        "elements": results that fusions and other operations compute and do not merely move,
        products apart; "passes": instructions, products apart, that move as much as one layer's
        activations; "traffic_bytes": through memory; "temporary_bytes".
    """
    module = module_of(compiled)
    found = dict.fromkeys(("product_flops", "products", "attention_products", "elements"), 0)
    for name, (count, _) in executions(module).items():
        computation = module.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "dot":
                found["products"] += count
                found["attention_products"] += count * batched(instruction)
                found["product_flops"] += count * flops(instruction, computation)
            elif instruction.opcode in COMPUTING:
                found["elements"] += count * size(instruction)
    moved = list(moves(module))
    found["passes"] = sum(
        move.count for move in moved if move.part == "rest" and move.bytes >= ACTIVATIONS
    )
    found["traffic_bytes"] = sum(move.bytes * move.count for move in moved)
    found["temporary_bytes"] = memory(compiled).temporaries
    return found


# Element by element, whatever they cost; comparisons, selections and conversions count too.
COMPUTING = frozenset(
    (
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "power"),
        *("exponential", "exponential-minus-one", "log", "log-plus-one", "tanh", "erf", "logistic"),
        *("sqrt", "rsqrt", "cbrt", "select", "compare", "convert", "reduce", "clamp", "sign"),
    )
)


def batched(dot: Instruction) -> bool:
    found = re.search(r"lhs_batch_dims=\{([\d,]*)\}", dot.attributes)
    return bool(found and found[1])


def flops(dot: Instruction, computation: dict[str, Instruction]) -> int:
    """Two for each number of the result and each of those summed for it."""
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)[1]
    left = computation[dot.operands[0]].arrays[0].shape
    summed = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2 * summed * size(dot)


def size(instruction: Instruction) -> int:
    return sum(math.prod(array.shape) for array in instruction.arrays)


def recorded() -> dict[str, dict[str, dict[str, int]]]:
    """Budgets by version of jax and step."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def record() -> None:
    budgets = recorded()
    budgets[version()] = {name: measured(compiled_step(name)) for name in STEPS}
    FILE.write_text(json.dumps(budgets, indent=2, sort_keys=True) + "\n")
    print(json.dumps(budgets[version()], indent=2))


if __name__ == "__main__":
    record()
