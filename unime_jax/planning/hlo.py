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
    """One line of HLO; `kind` is its type as text, `rest` what follows the arguments."""

    name: str
    kind: str
    opcode: str
    arguments: str
    rest: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The instructions among the arguments."""
        return tuple(re.findall(r"%([\w.-]+)", self.arguments))

    def called(self, key: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.-]+)", self.rest)
        return found and found[1]

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        two_or_more = r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+)"
        lists = (found[1] or found[2] for found in re.finditer(two_or_more, self.rest))
        return [name for names in lists for name in re.findall(r"[\w.-]+", names)]

    @property
    def element(self) -> int | None:
        """Which part of a tuple this is."""
        found = re.search(r"index=(\d+)", self.rest)
        return int(found[1]) if self.opcode == "get-tuple-element" and found else None

    @property
    def result(self) -> str:
        """The type of what is computed; that of a start has operands and contexts beside it."""
        if not self.opcode.endswith("-start") or self.opcode == "all-reduce-start":
            return self.kind
        inner = self.kind[1:-1]
        if not inner.startswith("("):
            return arrays(inner)[1]
        rest = inner[_closing(inner, 0) + 1 :].lstrip(", ")  # after a tuple of operands
        return rest[: _closing(rest, 0) + 1] if rest.startswith("(") else arrays(rest)[0]


@dataclasses.dataclass(frozen=True)
class Module:
    """A module's computations by name, each with its instructions by name."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    partitions: int

    def root(self, computation: str) -> Instruction:
        return next(one for one in self.computations[computation].values() if one.root)


def parse(text: str) -> Module:
    """A module from the text of `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            body = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            body = None
        elif body is not None and (found := _LINE.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            body[instruction.name] = instruction
    if not entry:
        raise ValueError("this is not the text of an HLO module: there is no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(entry, computations, int(partitions[1]) if partitions else 1)


def size(kind: str) -> float:
    """Bytes of all arrays in a type, wherever they lie."""
    return sum(_array_bytes(*found.groups()) for found in _ARRAY.finditer(kind))


def arrays(kind: str) -> list[str]:
    """The types of the arrays in a type."""
    return [found[0] for found in _ARRAY.finditer(kind)]


def hbm_size(kind: str) -> float:
    """Bytes of the arrays in a type that lie in HBM."""
    return sum(_array_bytes(*found.groups(), space=True) for found in _ARRAY.finditer(kind))


def members(module: Module, one: Instruction) -> int:
    """Chips of a ring."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", one.rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\w*mesh\[([^]]*)\]\s*\{([^}]*)\}", one.rest):
        sizes = dict(re.findall(r"'([\w.-]+)'=(\d+)", found[1]))
        axes = re.findall(r"'([\w.-]+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", one.rest):
        return len(found[1].split(","))
    return module.partitions


def trip_count(module: Module, body: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a loop runs, where the program says it: it counts up to a constant."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(found[1])
    condition = module.computations[loop.called("condition") or ""]
    inner = module.computations[loop.called("body") or ""]
    compare = module.root(loop.called("condition") or "")
    arguments = compare.operands
    if compare.opcode == "fusion":  # of the comparison alone
        compare = module.root(compare.called("calls") or "")
    if compare.opcode != "compare" or "direction=LT" not in compare.rest or len(arguments) != 2:
        return None
    initial = body[loop.operands[0]].operands
    after = module.root(loop.called("body") or "").operands
    counter = condition[arguments[0]].element
    if counter is None or len(initial) <= counter or len(after) != len(initial):
        return None

    def value(scope: dict[str, Instruction], name: str) -> int | None:
        """A constant, or an element of the state that no iteration changes."""
        index = scope[name].element
        if index is None:
            return _constant(scope, name)
        return _constant(body, initial[index]) if inner[after[index]].element == index else None

    first, last = _constant(body, initial[counter]), value(condition, arguments[1])
    add = inner[after[counter]]
    steps = [value(inner, name) for name in add.operands if inner[name].element != counter]
    if first is None or last is None or add.opcode != "add" or steps in ([], [None], [0]):
        return None
    return max(math.ceil((last - first) / (steps[0] or 1)), 0)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, call = text[:end], text[end:].strip()
    opcode, _, _ = call.partition("(")
    close = _closing(call, len(opcode))
    arguments = call[len(opcode) + 1 : close]
    return Instruction(name, kind, opcode, arguments, call[close + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _array_bytes(dtype: str, sides: str, layout: str | None, *, space: bool = False) -> float:
    if space and layout and re.search(r"S\([1-9]\d*\)", layout):
        return 0  # in the chip's own memory
    return _BYTES.get(dtype, 0) * math.prod(int(side) for side in sides.split(",") if side)


def _constant(body: dict[str, Instruction], name: str) -> int | None:
    """The number that a scalar is, through copies."""
    one = body[name]
    while one.opcode in ("copy", "bitcast", "convert") and one.operands:
        one = body[one.operands[0]]
    whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments)
    return int(one.arguments) if whole else None
