"""What a compiled program moves, from its optimised HLO text: over ICI, and between HBM and chip.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
its loops run: counted loops say how often, and of loops whose end is computed (over live chunks)
the caller knows.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

Trips = Callable[[str], int | None]  # of a loop with an unknown end, from the type of its state

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
# What names or forwards buffers, without moving any.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
    + ("call", "after-all", "iota", "partition-id", "replica-id", "add-dependency", "opt-barrier")
    + ("async-start", "async-update", "async-done", "custom-call")
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


@dataclasses.dataclass(frozen=True)
class Module:
    """A module's computations by name, each with its instructions by name."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    partitions: int

    def root(self, computation: str) -> Instruction:
        return next(one for one in self.computations[computation].values() if one.root)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one chip and one call, in bytes.

    Attributes:
      ici: sent, by kind of collective, by the usual ring algorithms.
      hbm: read and written by every instruction that is run, as buffers lie in the compiled
        program; what its fusions keep on the chip is not in it.
      unknown: loops of which nobody knew how often they run, counted once.
    """

    ici: dict[str, float]
    hbm: float
    unknown: int


def traffic(text: str, trips: Trips) -> Traffic:
    """What a compiled program of one chip moves.

    `trips` gets the types of a loop's state where its end is computed; None: not known either.
    """
    module = parse(text)
    found = _walk(module, module.entry, trips)
    ici = {kind: found[kind] for kind in COLLECTIVES if found.get(kind)}
    return Traffic(ici, found.get("hbm", 0.0), int(found.get("unknown", 0)))


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


def ring_bytes(opcode: str, kind: str, members: int) -> float:
    """Bytes that one member of a ring sends for a collective with the result type `kind`."""
    result, share = size(kind), (members - 1) / members
    if opcode == "all-reduce":
        return 2 * share * result
    if opcode == "reduce-scatter":
        return (members - 1) * result
    if opcode in ("collective-permute", "collective-broadcast"):
        return result
    return share * result  # all-gather, all-to-all


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


def _hbm(kind: str) -> float:
    """Bytes of the arrays in a type that lie in HBM."""
    return sum(_array_bytes(*found.groups(), space=True) for found in _ARRAY.finditer(kind))


def _walk(module: Module, computation: str, trips: Trips) -> dict[str, float]:
    """Bytes of one run of a computation, by kind of collective and as "hbm"."""

    @functools.cache
    def walk(computation: str) -> dict[str, float]:
        total: dict[str, float] = collections.defaultdict(float)

        def add(more: Mapping[str, float]) -> None:
            for key, value in more.items():
                total[key] += value

        body = module.computations[computation]
        for one in body.values():
            if one.opcode == "while":
                times = _trip_count(module, body, one)
                if times is None:
                    times = trips(one.kind)
                total["unknown"] += times is None
                inner, scale = walk(one.called("body") or ""), 1 if times is None else times
                add({key: n if key == "unknown" else n * scale for key, n in inner.items()})
            elif one.opcode == "conditional":
                branches = [walk(name) for name in _branches(one)]
                add(max(branches, key=lambda branch: sum(branch.values())))
            elif one.opcode in ("call", "async-start"):
                add(walk(one.called("to_apply") or one.called("calls") or ""))
            elif one.opcode == "fusion":
                name = one.called("calls") or ""
                inside, step = walk(name), _chain_step(module, name)
                if step != "later":
                    add({key: n for key, n in inside.items() if key in COLLECTIVES})
                total["hbm"] += _fusion_bytes(module, body, one, passed_on=bool(step))
            else:
                kind = one.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    total[kind] += ring_bytes(kind, _result(one), _members(module, one))
                total["hbm"] += _plain_bytes(body, one)
        return total

    return walk(computation)


def _result(one: Instruction) -> str:
    """The type of what is computed; that of a start has operands and contexts beside it."""
    if not one.opcode.endswith("-start") or one.opcode == "all-reduce-start":
        return one.kind
    inner = one.kind[1:-1]
    if not inner.startswith("("):
        return [found[0] for found in _ARRAY.finditer(inner)][1]
    rest = inner[_closing(inner, 0) + 1 :].lstrip(", ")  # after a tuple of operands
    if rest.startswith("("):
        return rest[: _closing(rest, 0) + 1]
    return next(found[0] for found in _ARRAY.finditer(rest))


def _members(module: Module, one: Instruction) -> int:
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


def _chain_step(module: Module, computation: str) -> str:
    """Whether a fusion is the "first" or a "later" step of an asynchronous collective, or none.

    A TPU's compiler cuts a collective into steps that run beside other work; each of them has an
    instruction that stands for all of it.
    """
    inside = module.computations[computation].values()
    if not any(one.opcode in COLLECTIVES and "chain_id=" in one.rest for one in inside):
        return ""
    starts = any('"AsyncCollectiveStart"' in one.rest for one in inside)
    return "first" if starts else "later"


def _branches(one: Instruction) -> Iterator[str]:
    for found in re.finditer(
        r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+))", one.rest
    ):
        yield from re.findall(r"[\w.-]+", found[1] or found[2])


def _trip_count(module: Module, body: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a loop runs, where the program says it: it counts up to a constant."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(found[1])
    condition = module.computations[loop.called("condition") or ""]
    inner = module.computations[loop.called("body") or ""]
    compare = next(one for one in condition.values() if one.root)
    arguments = compare.operands
    if compare.opcode == "fusion":  # of the comparison alone
        compare = module.root(compare.called("calls") or "")
    if compare.opcode != "compare" or "direction=LT" not in compare.rest or len(arguments) != 2:
        return None
    initial, after = (
        body[loop.operands[0]].operands,
        module.root(loop.called("body") or "").operands,
    )
    counter = _element(condition[arguments[0]])
    if counter is None or len(initial) <= counter or len(after) != len(initial):
        return None

    def value(scope: dict[str, Instruction], name: str) -> int | None:
        """A constant, or an element of the state that no iteration changes."""
        index = _element(scope[name])
        if index is None:
            return _constant(scope, name)
        return _constant(body, initial[index]) if _element(inner[after[index]]) == index else None

    first, last = _constant(body, initial[counter]), value(condition, arguments[1])
    add = inner[after[counter]]
    steps = [value(inner, name) for name in add.operands if _element(inner[name]) != counter]
    if first is None or last is None or add.opcode != "add" or steps in ([], [None], [0]):
        return None
    return max(math.ceil((last - first) / (steps[0] or 1)), 0)


def _element(one: Instruction) -> int | None:
    """Which part of a tuple an instruction is."""
    found = re.search(r"index=(\d+)", one.rest)
    return int(found[1]) if one.opcode == "get-tuple-element" and found else None


def _constant(body: dict[str, Instruction], name: str) -> int | None:
    """The number that a scalar is, through copies."""
    one = body[name]
    while one.opcode in ("copy", "bitcast", "convert") and one.operands:
        one = body[one.operands[0]]
    whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments)
    return int(one.arguments) if whole else None


def _plain_bytes(body: dict[str, Instruction], one: Instruction) -> float:
    """HBM bytes of an instruction that is no fusion."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0
    opcode, result = one.opcode.removesuffix("-start"), _result(one)
    if opcode == "copy" and one.opcode != opcode:
        return _hbm(one.kind)  # from and to
    if opcode in ("dynamic-slice", "slice", "gather"):
        return _hbm(result) + (size(result) if _hbm(body[one.operands[0]].kind) else 0)
    if opcode == "dynamic-update-slice":
        return 2 * _hbm(body[one.operands[1]].kind)
    return _hbm(result) + sum(_hbm(body[name].kind) for name in one.operands if name in body)


def _fusion_bytes(
    module: Module, body: dict[str, Instruction], fusion: Instruction, *, passed_on: bool
) -> float:
    """HBM bytes of a fusion: of what it slices only the slices, of what it updates the updates.

    `passed_on`: results that are arguments, too, are not touched.
    """
    aliased = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", fusion.rest)
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", aliased[1]) if passed_on and aliased else []
    untouched = {int(argument) for _, argument in pairs}
    computation = fusion.called("calls") or ""
    total = sum(
        _read(module, computation, number, body[name].kind)
        for number, name in enumerate(fusion.operands)
        if number not in untouched
    )
    root = module.root(computation)
    inside = module.computations[computation]
    kinds = [found[0] for found in _ARRAY.finditer(fusion.kind)]
    several = fusion.kind.startswith("(")
    passed = {where for where, _ in pairs}
    for number, kind in enumerate(kinds):
        result = inside[root.operands[number]] if root.opcode == "tuple" else root
        if (str(number) if several else "") not in passed:
            total += min(_hbm(kind), _written(module, inside, result))
    return total


def _read(module: Module, computation: str, number: int, kind: str) -> float:
    """HBM bytes that a fused computation reads of one argument, which has the type `kind`."""
    inside = module.computations[computation].values()
    names = {
        one.name for one in inside if one.opcode == "parameter" and int(one.arguments) == number
    }
    whole, part = _hbm(kind), 0.0
    for one in inside:  # in order: what is read is defined before
        if not names & set(one.operands):
            continue
        if one.opcode == "bitcast":
            names.add(one.name)
        elif one.opcode in ("dynamic-slice", "slice", "gather") and one.operands[0] in names:
            part += size(one.kind)
        elif one.opcode == "dynamic-update-slice" and one.operands[0] in names:
            continue  # in place
        elif one.opcode == "fusion":
            for inner, name in enumerate(one.operands):
                if name in names:
                    part += _read(module, one.called("calls") or "", inner, kind)
        else:
            return whole
    return min(whole, part)


def _written(module: Module, inside: dict[str, Instruction], result: Instruction) -> float:
    """Bytes of a fusion's result that it writes: of an update in place, the update."""
    while result.opcode == "bitcast" and result.operands:
        result = inside[result.operands[0]]
    if result.opcode == "fusion":
        computation = result.called("calls") or ""
        return _written(module, module.computations[computation], module.root(computation))
    updated = result.opcode == "dynamic-update-slice"
    return size(inside[result.operands[1]].kind) if updated else math.inf
