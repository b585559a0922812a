"""How many bytes a compiled program moves through its device's memory, read off its text.

What XLA calls "bytes accessed" counts the body of a loop once. Here every instruction that runs
reads its operands and writes its result, as often as it runs: what a fusion keeps to itself, what
lies in a TPU's on-chip memory, and the parts of an array that a slice leaves alone are free.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from jax.stages import Compiled

from xtra_jax.parallel.hlo import Array, Instruction, Module, executions
from xtra_jax.parallel.program import module_of

# Names for what is there already, and control flow, whose bodies are counted by themselves.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
        *("async-start", "async-update", "async-done"),
    )
)
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "get-tuple-element")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Move:
    """What one instruction of a program reads and writes.

    Attributes:
        name: of the instruction, to find it in the program's text.
        part: "products" for matrix products, of libraries or compiled, with what is fused into
            them; "attention" for cuDNN's fused attention; "rest" for everything else, which only
            waits for memory.
        bytes: each time that it runs.
        count: how often it runs in one run of the program.
    """

    name: str
    part: str
    bytes: int
    count: int


def memory_traffic(program: Compiled | str | Module) -> int:
    """Bytes that one run of a program reads from and writes to each device's main memory."""
    return sum(move.bytes * move.count for move in moves(program))


def traffic_parts(program: Compiled | str | Module) -> dict[str, int]:
    """The same bytes by `Move.part`."""
    parts = {"products": 0, "attention": 0, "rest": 0}
    for move in moves(program):
        parts[move.part] += move.bytes * move.count
    return parts


def moves(program: Compiled | str | Module) -> Iterator[Move]:
    """Every instruction that reads from or writes to main memory."""
    module = module_of(program)
    applied = _applied(module)
    for name, (count, _) in executions(module).items():
        if name in applied:
            continue
        computation = module.computations[name]
        for item in computation.values():
            if moved := _moved(item, computation, module):
                yield Move(item.name, _part(item, module), moved, count)


def _part(instruction: Instruction, module: Module) -> str:
    if instruction.opcode == "custom-call":
        target = _TARGET.search(instruction.attributes)
        name = target[1].lower() if target else ""
        if "fmha" in name:
            return "attention"
        return "products" if "gemm" in name or "matmul" in name else "rest"
    return "products" if _multiplies(instruction, module) else "rest"


def _multiplies(instruction: Instruction, module: Module) -> bool:
    if instruction.opcode in ("dot", "convolution"):
        return True
    return instruction.opcode.startswith("fusion") and any(
        _multiplies(inner, module)
        for called in instruction.called
        for inner in module.computations[called].values()
    )


def _applied(module: Module) -> frozenset[str]:
    """Computations that run inside of one instruction: fusions, and the sums of reductions."""
    return frozenset(
        called
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode not in ("while", "conditional", "call", "async-start")
        for called in instruction.called
    )


def _size(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _moved(instruction: Instruction, computation: dict, module: Module) -> int:
    opcode = instruction.opcode
    if opcode in _FREE:
        return 0
    if opcode.endswith("-done"):
        written = _size(instruction.arrays)
        if opcode.removesuffix("-done") in _SLICES:  # read from main memory, wherever it goes
            return written + sum(array.bytes for array in instruction.arrays)
        return 0 if opcode == "copy-done" else written  # a copy is counted where it starts
    if opcode.removesuffix("-start") in _SLICES and opcode not in _SLICES:
        return 0
    if opcode in _SLICES:
        return 2 * _size(instruction.arrays)
    if opcode == "dynamic-update-slice":
        return 2 * _size(computation[instruction.operands[1]].arrays)
    operands = [computation[name] for name in dict.fromkeys(instruction.operands)]
    if opcode == "copy-start":
        return _size(instruction.arrays[:1]) + _size(operands[0].arrays)
    if opcode in ("fusion", "fusion-start"):
        return _fused(instruction, computation, module)
    if opcode.endswith("-start"):
        return sum(_size(operand.arrays) for operand in operands)
    results = instruction.arrays
    if opcode == "custom-call":  # matrix products of GPU libraries list their workspace: s8
        results = [array for array in results if array.dtype != "s8"] or results
    return _size(results) + sum(_size(operand.arrays) for operand in operands)


def _fused(fusion: Instruction, computation: dict, module: Module) -> int:
    inside = module.computations[fusion.called[0]]
    moved = 0
    for index, name in enumerate(fusion.operands):
        operand = computation[name]
        if all(array.space == 0 for array in operand.arrays):
            moved += min(_size(operand.arrays), _read(inside, index, module))
    if fusion.opcode == "fusion-start":
        return moved  # what it writes is counted where it is done
    root = next(instruction for instruction in inside.values() if instruction.root)
    parts = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for part, array in zip(parts, fusion.arrays, strict=False):
        while part.opcode == "bitcast":
            part = inside[part.operands[0]]
        if part.opcode == "dynamic-update-slice":
            moved += _size([array]) and sum(a.bytes for a in inside[part.operands[1]].arrays)
        else:
            moved += _size([array])
    return moved


def _read(inside: dict[str, Instruction], index: int, module: Module) -> int:
    """Bytes that a fusion reads of its operand of this number."""
    parameter = next(
        (
            instruction
            for instruction in inside.values()
            if instruction.opcode == "parameter" and instruction.attributes == str(index)
        ),
        None,
    )
    return _used(inside, parameter, module) if parameter else 0


def _used(inside: dict[str, Instruction], source: Instruction, module: Module) -> int:
    whole = sum(array.bytes for array in source.arrays)
    read = 0
    for user in inside.values():
        if source.name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == source.name:
            read += sum(array.bytes for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
            continue  # updated in place
        elif user.opcode in _VIEWS:
            read += _used(inside, user, module)
        elif user.opcode == "fusion":
            called = module.computations[user.called[0]]
            places = [i for i, name in enumerate(user.operands) if name == source.name]
            read += sum(_read(called, i, module) for i in places)
        else:
            return whole
    return min(whole, read)
