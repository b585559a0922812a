"""Reading a compiled program: its memory, what its devices tell each other, what the host sees.

It knows nothing of the model. What it reads is XLA's own account, the buffer assignment and the
optimised HLO, so it holds for programs compiled ahead of time as well.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from jax.stages import Compiled

from xtra_jax.parallel.hlo import HOST_SPACE, Array, Instruction, Module, executions, parse

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory that a program takes.

    Attributes:
        arguments: what it is given: state and batch.
        outputs: what it returns, `aliased` included.
        aliased: results that lie in the memory of donated arguments.
        temporaries: activations, gradients and whatever else lives only while it runs. XLA lays
            them out in one block that is reserved as a whole.
        code: the instructions, where the compiler tells (TPU).
        peak: what must be there for it to run: all of these, what is aliased counted once; or, if
            that is more, the peak that XLA's simulation of its buffers arrives at.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices, seen from one of them.

    Attributes:
        kind: one of `KINDS`.
        dtype: of what is sent, as HLO writes it: "bf16", "f32".
        shapes: of the arrays it yields on a device; of a reduce-scatter, of those it reduces.
        bytes: of those arrays: the gathered whole of an all-gather, the whole that is reduced.
        group_size: how many devices it joins; 0 stands for all of them.
        count: how often it runs in one run of the program.
        count_known: False inside of a loop whose length isn't in the program: counted as one round.
        name: of the instruction, to find it in the program's text.
    """

    kind: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    group_size: int
    count: int
    count_known: bool = True
    name: str = ""

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, by a ring: the least that any algorithm needs."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        share = (self.group_size - 1) / self.group_size if self.group_size else 1.0
        return (2 if self.kind == "all-reduce" else 1) * share * self.bytes


@dataclasses.dataclass(frozen=True)
class HostTransfer:
    """Something that passes between device and host while the program runs: no step has any."""

    kind: str
    target: str
    name: str
    count: int


def module_of(program: Compiled | str | Module) -> Module:
    """A program parsed; every function here takes it too, so that its text is read only once."""
    if isinstance(program, Module):
        return program
    return parse(program if isinstance(program, str) else program.as_text())


def memory(compiled: Compiled) -> Memory:
    """What a program takes of each device's memory."""
    stats = compiled.memory_analysis()
    parts = dict(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    reserved = sum(parts.values()) - 2 * parts["aliased"]
    # On CPUs the simulated peak leaves the temporaries out.
    return Memory(**parts, peak=max(reserved, getattr(stats, "peak_memory_in_bytes", 0)))


def collectives(program: Compiled | str | Module) -> list[Collective]:
    """Every collective of a program, once: pairs of start and done are one.

    One that carries arrays of several dtypes makes an entry for each.
    """
    module = module_of(program)
    found = []
    for name, (count, known) in executions(module).items():
        computation = module.computations[name]
        for instruction in computation.values():
            kind, started = _collective(instruction, computation)
            if not kind or _in_flight(instruction, name, computation):
                continue
            # How TPU programs write a reduce-scatter: an all-reduce fused with the slice of it.
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
                whole = instruction.arrays
            else:
                whole = _whole(kind, instruction.arrays, started, module)
            for dtype in dict.fromkeys(array.dtype for array in whole):
                arrays = [array for array in whole if array.dtype == dtype]
                found.append(
                    Collective(
                        kind=kind,
                        dtype=dtype,
                        shapes=tuple(array.shape for array in arrays),
                        bytes=sum(array.bytes for array in arrays),
                        group_size=_group_size(kind, started.attributes, module),
                        count=count,
                        count_known=known,
                        name=instruction.name,
                    )
                )
    return found


def _collective(instruction: Instruction, computation) -> tuple[str, Instruction]:
    """The kind of collective that an instruction completes, "" for none, and what started it."""
    if instruction.opcode in KINDS:
        return instruction.opcode, instruction
    kind = instruction.opcode.removesuffix("-done")
    if kind != instruction.opcode and kind in KINDS:
        return kind, computation[instruction.operands[0]]
    return "", instruction


def _in_flight(instruction: Instruction, name: str, computation) -> bool:
    """Whether an instruction only stands for a collective that is under way.

    TPU programs repeat it in every fusion that it overlaps with, and once more where it ends; only
    where it starts it is the operand of an AsyncCollectiveStart.
    """
    marks = [other for other in computation.values() if "AsyncCollective" in other.attributes]
    if not marks and not name.startswith("async_collective_fusion"):
        return False
    starts = [other for other in marks if '"AsyncCollectiveStart"' in other.attributes]
    return not any(instruction.name in other.operands for other in starts)


def _whole(kind, arrays: Iterable[Array], started: Instruction, module: Module) -> list[Array]:
    """The whole arrays that a collective is about, from those that it yields on a device."""
    if kind != "reduce-scatter":
        return list(arrays)
    axis = int(re.search(r"dimensions=\{(\d+)\}", started.attributes)[1])
    size = _group_size(kind, started.attributes, module)

    def times(shape):
        return shape[:axis] + (shape[axis] * size,) + shape[axis + 1 :]

    return [dataclasses.replace(array, shape=times(array.shape)) for array in arrays]


def _group_size(kind: str, attributes: str, module: Module) -> int:
    """How many devices exchange with each other, from the three ways in which HLO lists groups."""
    if kind == "collective-permute":
        return 2
    if of_mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", of_mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", of_mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if strided := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(strided[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed[1].split(",")) if listed else module.num_partitions


def host_transfers(program: Compiled | str | Module) -> list[HostTransfer]:
    """Whatever a program exchanges with the host between its arguments and its results."""
    module = module_of(program)
    found = []
    for name, (count, _) in executions(module).items():
        for instruction in module.computations[name].values():
            opcode, attributes = instruction.opcode, instruction.attributes
            target = re.search(r'custom_call_target="([^"]*)"', attributes)
            if (
                opcode in ("infeed", "outfeed")
                or (opcode in ("send", "recv") and "is_host_transfer=true" in attributes)
                or (opcode == "custom-call" and target and "callback" in target[1].lower())
                or (opcode == "copy-start" and _crosses_to_host(instruction))
            ):
                kind = "callback" if opcode == "custom-call" else opcode
                found.append(
                    HostTransfer(kind, target[1] if target else "", instruction.name, count)
                )
    return found


def _crosses_to_host(copy: Instruction) -> bool:
    spaces = {array.space for array in copy.arrays if array.shape}
    return HOST_SPACE in spaces and len(spaces) > 1


def aliased_arguments(program: Compiled | str | Module) -> frozenset[int]:
    """Numbers, in the order of the program's flat arguments, of those whose memory is reused.

    Donation is effective where they are all that was donated. Arguments that the computation never
    looks at are dropped from the program and not counted.
    """
    return module_of(program).aliased
