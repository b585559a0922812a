"""Optimised HLO, XLA's text of a compiled program, as computations of instructions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Memory spaces in a layout, as in f32[8,128]{1,0:T(8,128)S(1)}; none is the device's main memory.
HOST_SPACE = 5

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{[\d, ]*\}, \w+-alias\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of one device.

    Attributes:
        dtype: as HLO writes it, such as "bf16" or "f32".
        space: memory space, 0 for the device's main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        if self.dtype == "pred":
            return math.prod(self.shape)
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(math.prod(self.shape) * int(bits[0]) / 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = result opcode(operands), attributes`, the operands by name."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, those inside of tuples one after another."""
        return tuple(_arrays(self.result))

    @property
    def called(self) -> list[str]:
        """The computations it runs, the condition of a loop apart."""
        branches = _BRANCHES.search(self.attributes)
        names = [name.strip().lstrip("%") for name in branches[1].split(",")] if branches else []
        return _CALLED.findall(self.attributes) + names


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: the instructions of each computation by name, and what its header says.

    Attributes:
        num_partitions: devices the program runs on, 0 where the header leaves it out (TPU).
        aliased: numbers of the parameters whose memory holds a result.
    """

    entry: str
    computations: dict[str, dict[str, Instruction]]
    num_partitions: int
    aliased: frozenset[int]


def _arrays(result: str) -> Iterator[Array]:
    for dtype, shape, layout in _ARRAY.findall(result):
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(
            dtype,
            tuple(int(size) for size in shape.split(",") if size),
            int(space[1]) if space else 0,
        )


def parse(text: str) -> Module:
    """Reads the text of `jax.stages.Compiled.as_text`."""
    header, _, rest = text.partition("\n")
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in rest.splitlines():
        if line.endswith("{") and (match := _COMPUTATION.match(line)):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match[2], match[3], root=bool(match[1]))
            if instruction:
                current[instruction.name] = instruction
    partitions = _PARTITIONS.search(header)
    return Module(
        entry=entry,
        computations=computations,
        num_partitions=int(partitions[1]) if partitions else 0,
        aliased=frozenset(int(number) for number in _ALIAS.findall(header)),
    )


def _instruction(name: str, rest: str, root: bool) -> Instruction | None:
    opcode = _OPCODE.search(rest)
    if not opcode:
        return None
    inside, _, attributes = rest[opcode.end() :].partition(")")
    operands = () if opcode[1] == "constant" else tuple(_NAME.findall(inside))
    if opcode[1] in ("constant", "parameter"):  # their values and numbers
        attributes = inside
    return Instruction(name, rest[: opcode.start()], opcode[1], operands, attributes, root)


def executions(module: Module) -> dict[str, tuple[int, bool]]:
    """How often each computation runs in one run of the program.

    Returns:
        For every computation that runs: the number of times, and whether it is known. A loop whose
        length the program does not tell counts as one round, a branch as always taken.
    """
    callers: dict[str, list[tuple[str, int | None]]] = {name: [] for name in module.computations}
    for name, computation in module.computations.items():
        for instruction in computation.values():
            if instruction.opcode in ("async-update", "async-done"):
                continue  # their async-start has called it
            trips = 1
            if instruction.opcode == "while":
                trips = trip_count(module, computation, instruction)
            for called in instruction.called:
                if called in callers:
                    callers[called].append((name, trips))

    @functools.cache
    def of(name: str) -> tuple[int, bool]:
        count, known = int(name == module.entry), True
        for caller, trips in callers[name]:
            times, sure = of(caller)
            count += times * (1 if trips is None else trips)
            known = known and sure and trips is not None
        return count, known

    return {name: of(name) for name in module.computations if of(name)[0]}


def trip_count(module: Module, computation: dict, loop: Instruction) -> int | None:
    """The rounds of a while loop, or None where it can't be told.

    CPU and GPU programs say it; in TPU programs it is read off a condition `i < constant` of a
    counter that starts at a constant and, as in every loop that JAX makes, goes up by 1.
    """
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    condition = module.computations[_CONDITION.search(loop.attributes)[1]]
    compare = next(instruction for instruction in condition.values() if instruction.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition[name] for name in compare.operands)
    state = computation[loop.operands[0]]
    index = re.search(r"\bindex=(\d+)", counter.attributes)
    if limit.opcode != "constant" or index is None or state.opcode != "tuple":
        return None
    start = computation[state.operands[int(index[1])]]
    while start.opcode == "copy":
        start = computation[start.operands[0]]
    if start.opcode != "constant":
        return None
    return max(0, int(limit.attributes) - int(start.attributes))
