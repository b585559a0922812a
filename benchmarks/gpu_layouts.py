"""Float32 activations that a GPU program lays out with the batch along their fastest axis."""

from __future__ import annotations

import math
import re

from jax.stages import Compiled

from xtra_jax.parallel.hlo import Module, executions
from xtra_jax.parallel.program import module_of

_LAID_OUT = re.compile(r"\bf32\[([\d,]+)\]\{([\d,]+)")


def batch_minor(program: Compiled | str | Module, batch: int, tokens: int, width: int) -> list[str]:
    """Instructions that write float32 activations whose fastest axis runs over samples or rows.

    A program that has them transposes activations, widened to float32, on their way from one
    operation to the next, at twice the bytes, where it could have fused the widening into what
    reads them. Counted is every result in memory with at least `batch * tokens * width` float32
    numbers, whose fastest axis has `batch` or `batch * tokens` entries; what a fusion keeps to
    itself is not in memory.
    """
    module = module_of(program)
    fused = {
        called
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode not in ("while", "conditional", "call", "async-start")
        for called in instruction.called
    }
    found = []
    for name in executions(module):
        if name in fused:
            continue
        for instruction in module.computations[name].values():
            for shape, layout in _LAID_OUT.findall(instruction.result):
                sizes = [int(size) for size in shape.split(",")]
                fastest = sizes[int(layout.split(",")[0])]
                large = math.prod(sizes) >= batch * tokens * width
                if large and len(sizes) > 1 and fastest in (batch, batch * tokens):
                    found.append(instruction.name)
    return found
