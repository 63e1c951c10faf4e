"""What a GPU program does, read from its compiled text: its kernels, and the bytes that each moves from and to memory.

XLA gives no cost analysis of programs for GPUs. A kernel is counted with what it reads and writes: for an array that it only
takes slices from, the slices; for a buffer that it changes in place, the change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "token": 0}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "after-all"}
UNKNOWN = re.compile(r"^(call|conditional|async|all-|collective|reduce-scatter|send|recv)|-(start|done)$")
WORKSPACE = re.compile(r", [su]8\[\d+\]\{0\}\)$")  # a library's, whatever it needs of it
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place of their first operand, by the one of this number


@dataclass(frozen=True)
class Instruction:
    """One line of a program: its name, what it makes of what, the computation it runs, and where in Python it comes from."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    calls: str | None
    root: bool
    source: str


@dataclass(frozen=True)
class Kernel:
    """One kernel and the bytes it moves."""

    name: str
    bytes: int


Program = dict[str, list[Instruction]]


def parse(text: str) -> Program:
    """Computation -> its instructions, of `compiled.as_text()`."""
    program, current = {}, []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if found := COMPUTATION.match(line):
            current = program.setdefault(found[1], [])
        elif found := INSTRUCTION.match(line):
            root, name, shape, opcode, operands, rest = found.groups()
            calls, source = re.search(r"(?:calls|body)=%?([\w.\-]+)", rest), re.search(r'op_name="([^"]*)"', rest)
            inputs = tuple(re.findall(r"%([\w.\-]+)", operands))
            current.append(Instruction(name, shape, opcode, inputs, calls and calls[1], bool(root), source[1] if source else ""))
    return program


def loops(program: Program) -> list[tuple[str, list[Kernel]]]:
    """(where it comes from, kernels of one round) of every loop, in the order of the text, inner loops not entered."""
    found = [i for instructions in program.values() for i in instructions if i.opcode == "while" and i.calls]
    return [(loop.source, kernels(program, str(loop.calls))) for loop in found]


def size(shape: str) -> int:
    """Bytes of a shape such as "bf16[2,3]{1,0}" or a tuple of them."""
    total = 0
    for dtype, numbers in ARRAY.findall(shape):
        count = BYTES[dtype]
        for number in filter(None, numbers.split(",")):
            count *= int(number)
        total += count
    return total


def kernels(program: Program, computation: str) -> list[Kernel]:
    """The kernels of a computation, a loop's body say, in order; inner loops not entered.

    Raises:
        ValueError: something that this cannot count, such as several GPUs that talk to each other.
    """
    instructions = [i for i in program[computation] if i.opcode not in FREE]
    if unknown := sorted({i.opcode for i in instructions if UNKNOWN.search(i.opcode)}):
        raise ValueError(f"cannot count the bytes of {', '.join(unknown)}")
    shapes = {i.name: i.shape for i in program[computation]}
    return [Kernel(i.name, moved(i, shapes, program)) for i in instructions]


def moved(kernel: Instruction, shapes: dict[str, str], program: Program) -> int:
    """Bytes in and out of one kernel."""
    inner = program.get(kernel.calls or "")
    if kernel.opcode != "fusion" or not inner:
        return size(WORKSPACE.sub("", kernel.shape)) + sum(size(shapes.get(operand, "")) for operand in kernel.operands)
    made = {i.name: i for i in inner}
    root = next(i for i in inner if i.root)
    return _written(root, made) + sum(_read(i, inner) for i in inner if i.opcode == "parameter")


def _read(source: Instruction, inner: list[Instruction]) -> int:
    """Bytes read of an input of a fusion: what its users take, and at most all of it once."""
    total = 0
    for user in inner:
        if source.name not in user.operands or user.opcode == "tuple":
            continue
        if user.opcode == "bitcast" or (user.opcode in UPDATES and user.operands[0] == source.name):
            total += _read(user, inner)
        else:
            total += size(user.shape if user.opcode in SLICES else source.shape)
    return min(total, size(source.shape))


def _written(result: Instruction, made: dict[str, Instruction]) -> int:
    """Bytes written of a fusion's result."""
    if result.opcode == "tuple":
        return sum(_written(made[name], made) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(made[result.operands[0]], made)
    if result.opcode in UPDATES:
        return size(made[result.operands[UPDATES[result.opcode]]].shape)
    return size(result.shape)
