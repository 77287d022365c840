"""Optimised HLO text, as `compiled.as_text()` gives it, read into computations and instructions."""

import dataclasses
import functools
import math
import re

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2,
    "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
    "c64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")

COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = type opcode(arguments), attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions among the arguments."""
        return tuple(re.findall(r"%([\w.-]+)", self.arguments))

    def called(self, attribute: str) -> str:
        """The computation that an attribute names; "": there is no such attribute."""
        match = re.search(rf"\b{attribute}=%?([\w.-]+)", self.attributes)
        return match[1] if match else ""

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        two_or_more = r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+)"
        lists = (match[1] or match[2] for match in re.finditer(two_or_more, self.attributes))
        return [name for names in lists for name in re.findall(r"[\w.-]+", names)]

    @property
    def tuple_index(self) -> int | None:
        """The part of a tuple that a get-tuple-element takes; None: it is none."""
        match = re.search(r"index=(\d+)", self.attributes)
        return int(match[1]) if self.opcode == "get-tuple-element" and match else None

    @property
    def result(self) -> str:
        """The type without the operands and contexts that an asynchronous start has beside it."""
        if not self.opcode.endswith("-start") or self.opcode == "all-reduce-start":
            return self.type
        inner = self.type[1:-1]
        if not inner.startswith("("):
            return arrays(inner)[1]
        after_operands = inner[_closing(inner, 0) + 1 :].lstrip(", ")
        if after_operands.startswith("("):
            return after_operands[: _closing(after_operands, 0) + 1]
        return arrays(after_operands)[0]


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations of a program by name."""

    entry: str
    computations: dict[str, Computation]
    partitions: int

    def root(self, computation: str) -> Instruction:
        return next(line for line in self.computations[computation].values() if line.is_root)


def parse(text: str) -> Module:
    """A module from the text of `compiled.as_text()`.

    Raises:
      ValueError: the text is none of a module.
    """
    computations: dict[str, Computation] = {}
    entry, computation = "", None
    for line in _joined(text.splitlines()):
        if head := _HEAD.match(line):
            computation = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            computation = None
        elif computation is not None and (match := _LINE.match(line)):
            computation[match[2]] = _instruction(match[2], match[3], bool(match[1]))
    if not entry:
        raise ValueError("this is not the text of an HLO module: there is no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(entry, computations, int(partitions[1]) if partitions else 1)


def _joined(lines: list[str]) -> list[str]:
    """Lines of one instruction each: the metadata of a kernel has line breaks."""
    joined: list[str] = []
    for line in lines:
        if joined and (line.startswith('"') or line.startswith("}}")):
            joined[-1] += line
        else:
            joined.append(line)
    return joined


def arrays(type: str) -> list[str]:
    """The types of the arrays in a type."""
    return [match[0] for match in _ARRAY.finditer(type)]


def bytes_of(type: str) -> float:
    """Bytes of all arrays in a type, wherever they lie."""
    return sum(_array_bytes(match[1], match[2]) for match in _ARRAY.finditer(type))


def hbm_bytes(type: str) -> float:
    """Bytes of the arrays in a type that lie in HBM."""
    return sum(
        _array_bytes(match[1], match[2])
        for match in _ARRAY.finditer(type)
        if not re.search(r"S\([1-9]\d*\)", match[3] or "")  # a memory space of the chip itself
    )


def group_size(module: Module, collective: Instruction) -> int:
    """Chips that exchange data with each other in a collective."""
    attributes = collective.attributes
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=\w*mesh\[([^]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([\w.-]+)'=(\d+)", match[1]))
        axes = re.findall(r"'([\w.-]+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(match[1].split(","))
    return module.partitions


def trip_count(module: Module, scope: Computation, loop: Instruction) -> int | None:
    """Iterations of a loop in a computation, if the program says: it counts up to a constant."""
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    compare = module.root(loop.called("condition"))
    compared = compare.operands
    if compare.opcode == "fusion":  # of the comparison alone
        compare = module.root(compare.called("calls"))
    counts_up = compare.opcode == "compare" and "direction=LT" in compare.attributes
    if not counts_up or len(compared) != 2:
        return None
    before = scope[loop.operands[0]].operands
    after = module.root(loop.called("body")).operands
    counter = condition[compared[0]].tuple_index
    if counter is None or not counter < len(before) == len(after):
        return None

    def value(inside: Computation, name: str) -> int | None:
        """A constant, or an element of the state that no iteration changes."""
        index = inside[name].tuple_index
        if index is None:
            return _constant(inside, name)
        return _constant(scope, before[index]) if body[after[index]].tuple_index == index else None

    first, last = _constant(scope, before[counter]), value(condition, compared[1])
    add = _original(body, after[counter])
    others = (_original(body, name) for name in add.operands)
    steps = [value(body, line.name) for line in others if line.tuple_index != counter]
    if first is None or last is None or add.opcode != "add" or len(steps) != 1 or not steps[0]:
        return None
    return max(math.ceil((last - first) / steps[0]), 0)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    type, call = text[:end], text[end:].strip()
    opcode, _, _ = call.partition("(")
    close = _closing(call, len(opcode))
    arguments = call[len(opcode) + 1 : close]
    return Instruction(name, type, opcode, arguments, call[close + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _array_bytes(dtype: str, sides: str) -> float:
    return _BYTES.get(dtype, 0) * math.prod(int(side) for side in sides.split(",") if side)


def _original(scope: Computation, name: str) -> Instruction:
    """What a value is copied from."""
    line = scope[name]
    while line.opcode in ("copy", "bitcast", "convert") and line.operands:
        line = scope[line.operands[0]]
    return line


def _constant(scope: Computation, name: str) -> int | None:
    """The integer that a scalar is, through copies."""
    line = _original(scope, name)
    is_integer = line.opcode == "constant" and re.fullmatch(r"-?\d+", line.arguments)
    return int(line.arguments) if is_integer else None
