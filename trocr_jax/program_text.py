"""What a compiled program does, read from its text: its kernels, the bytes that each moves, and a TPU's cycles.

XLA gives no cost analysis of programs for GPUs, and that of a TPU's counts every access of a core's own memory as one of the main
memory. A kernel is counted with what it reads and writes: for an array that it only takes slices from, the slices; for a buffer
that it changes in place, the change. Arrays have the size that they take there: a TPU fills up whole tiles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "token": 0}
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
"""Of an array the dtype, the sizes, the axes from the fastest on, and how it is tiled in which memory."""
TILE = re.compile(r"\bT\(([\d,]+)\)")
OWN_MEMORY = re.compile(r"\bS\([1-9]\)")
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "after-all"}
COPIES = {"copy-start": 0, "slice-start": 1, "dynamic-slice-start": 1}  # beside other kernels; where in the shape is the target
UNKNOWN = re.compile(r"^(call|conditional|async|send|recv)")
WORKSPACE = re.compile(r", [su]8\[\d+\]\{0\}\)$")  # a library's, whatever it needs of it
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place of their first operand, by the one of this number


@dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name, shape, opcode, operands: what it makes of what.
        calls, condition: the computations that it runs: a fusion's, or a loop's body and its test.
        root: whether it is what its computation gives back.
        number: which input it is, or which whole number.
        source: where in Python it comes from.
        cycles: a TPU's, as its compiler estimates them.
        claimed: operations, of a kernel that is not the compiler's own and says so.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    calls: str
    condition: str
    root: bool
    number: int | None
    source: str
    cycles: int
    claimed: int


@dataclass(frozen=True)
class Kernel:
    """One kernel, the bytes that it moves, and a TPU's cycles or claimed operations, see `Instruction`."""

    name: str
    bytes: int
    cycles: int = 0
    claimed: int = 0


Program = dict[str, list[Instruction]]
"""Computation -> its instructions; the one where it begins is there as "ENTRY", too."""


def parse(text: str) -> Program:
    """Of `compiled.as_text()`."""
    program, current = {}, []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if found := COMPUTATION.match(line):
            current = program.setdefault(found[2], [])
            program |= {"ENTRY": current} if found[1] else {}
        elif found := INSTRUCTION.match(line):
            current.append(_instruction(*found.groups()))
    return program


def _instruction(root: str | None, name: str, shape: str, opcode: str, operands: str, rest: str) -> Instruction:
    def said(pattern: str) -> str:
        found = re.search(pattern, rest)
        return found[1] if found else ""

    number = int(operands) if opcode in ("parameter", "constant") and re.fullmatch(r"-?\d+", operands) else None
    cycles, claimed = said(r'"estimated_cycles":"(\d+)"'), said(r'"cost_estimate":\{"flops":"(\d+)"')
    return Instruction(
        name, shape, opcode, tuple(re.findall(r"%([\w.\-]+)", operands)), calls=said(r"(?:calls|body)=%?([\w.\-]+)"),
        condition=said(r"condition=%?([\w.\-]+)"), root=bool(root), number=number, source=said(r'op_name="([^"]*)"'),
        cycles=int(cycles or 0), claimed=int(claimed or 0),
    )  # fmt: skip


def loops(program: Program) -> list[tuple[str, list[Kernel]]]:
    """(where it comes from, kernels of one round) of every loop, in the order of the text, inner loops not entered."""
    found = [i for name, instructions in program.items() if name != "ENTRY" for i in instructions if i.opcode == "while"]
    return [(loop.source, kernels(program, loop.calls)) for loop in found]


def phases(
    program: Program, rounds: Iterator[int], computation: str = "ENTRY", times: int = 1
) -> Iterator[tuple[int, list[Kernel]]]:
    """(how often it runs, its kernels) of the program and of every loop in it.

    Args:
        rounds: of the loops that test something else than a counter, in their order; taken as they are met.

    Raises:
        ValueError: there are more such loops, or something that cannot be counted.
    """
    yield times, kernels(program, computation)
    for loop in (i for i in program[computation] if i.opcode == "while"):
        known = _rounds(program[loop.condition])
        count = next(rounds, None) if known is None else known
        if count is None:
            raise ValueError(f"nobody knows how often the loop {loop.source} runs")
        yield from phases(program, rounds, loop.calls, times * count)


def _rounds(condition: list[Instruction]) -> int | None:
    """Rounds of a loop that counts from 0 to a number, or None."""
    made = {i.name: i for i in condition}
    test = next(i for i in condition if i.root)
    ends = [made[name].number for name in test.operands if made[name].opcode == "constant"]
    return ends[0] if test.opcode == "compare" and len(ends) == 1 else None


def size(shape: str, *, anywhere: bool = False) -> int:
    """Bytes that a shape such as "bf16[2,3]{1,0}", or a tuple of them, takes in the device's main memory; of what lies elsewhere
    none, unless asked for.
    """
    arrays = ARRAY.findall(shape)
    return sum(_padded(*array) for array in arrays if anywhere or not OWN_MEMORY.search(array[3]))


def _padded(dtype: str, sizes: str, layout: str, rest: str) -> int:
    numbers = [int(number) for number in filter(None, sizes.split(","))]
    if tile := TILE.search(rest):
        order = [int(axis) for axis in filter(None, layout.split(","))]
        for axis, multiple in zip(order, reversed(tile[1].split(",")), strict=False):
            numbers[axis] = -(-numbers[axis] // int(multiple)) * int(multiple)
    return BYTES[dtype] * math.prod(numbers)


def kernels(program: Program, computation: str) -> list[Kernel]:
    """The kernels of a computation, a loop's body say, in order; inner loops not entered. Of devices that talk to each other
    only what each reads and writes of its own memory.

    Raises:
        ValueError: something that this cannot count.
    """
    instructions = [i for i in program[computation] if i.opcode not in FREE and not i.opcode.endswith("-done")]
    if unknown := sorted({i.opcode for i in instructions if UNKNOWN.search(i.opcode)}):
        raise ValueError(f"cannot count the bytes of {', '.join(unknown)}")
    shapes = {i.name: i.shape for i in program[computation]}
    return [Kernel(i.name, moved(i, shapes, program), i.cycles, i.claimed) for i in instructions]


def moved(kernel: Instruction, shapes: dict[str, str], program: Program) -> int:
    """Bytes in and out of one kernel."""
    inner = program.get(kernel.calls)
    if kernel.opcode in COPIES:
        return _copied(kernel, shapes)
    if kernel.opcode in UPDATES:
        change = shapes[kernel.operands[UPDATES[kernel.opcode]]]
        return size(change) + (size(change, anywhere=True) if size(kernel.shape) else 0)
    if kernel.opcode != "fusion" or not inner:
        return size(WORKSPACE.sub("", kernel.shape)) + sum(size(shapes.get(operand, "")) for operand in kernel.operands)
    made = {i.name: i for i in inner}
    root = next(i for i in inner if i.root)
    return _written(root, made) + sum(_read(i, inner, program) for i in inner if i.opcode == "parameter")


def _copied(copy: Instruction, shapes: dict[str, str]) -> int:
    """A copy that goes on beside other kernels; its shape is (target, source, flag), of a slice ((source), target, flag)."""
    target = ARRAY.findall(copy.shape)[COPIES[copy.opcode]]
    ends = (shapes[copy.operands[0]], target[3])
    return sum(not OWN_MEMORY.search(end) for end in ends) * _padded(*target)


def _read(source: Instruction, inner: list[Instruction], program: Program) -> int:
    """Bytes read of an input of a fusion: what its users take, fusions within it, too, and at most all of it once."""
    total = 0
    for user in inner:
        if source.name not in user.operands or user.opcode == "tuple":
            continue
        if user.opcode == "bitcast" or (user.opcode in UPDATES and user.operands[0] == source.name):
            total += _read(user, inner, program)
        elif user.opcode == "fusion":
            within = program[user.calls]
            again = next(i for i in within if i.number == user.operands.index(source.name))
            total += _read(again, within, program) + (_read(user, inner, program) if _is_view(again, within) else 0)
        else:
            total += size(user.shape if user.opcode in SLICES else source.shape)
    return min(total, size(source.shape))


def _is_view(source: Instruction, inner: list[Instruction]) -> bool:
    """Whether a fusion gives back its input as it is, in another shape."""
    made = {i.name: i for i in inner}
    result = next(i for i in inner if i.root)
    while result.opcode == "bitcast":
        result = made[result.operands[0]]
    return result is source


def _written(result: Instruction, made: dict[str, Instruction]) -> int:
    """Bytes written of a fusion's result."""
    if result.opcode == "tuple":
        return sum(_written(made[name], made) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(made[result.operands[0]], made)
    if result.opcode in UPDATES and size(result.shape):
        return size(made[result.operands[UPDATES[result.opcode]]].shape, anywhere=True)
    return size(result.shape)
