"""Bytes that a compiled program moves over ICI, and between HBM and chip."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable

from unime_jax.planning.counting.hlo import (
    COLLECTIVES,
    Computation,
    Instruction,
    Module,
    arrays,
    bytes_of,
    group_size,
    hbm_bytes,
    parse,
    trip_count,
)
from unime_jax.planning.counting.kernels import is_kernel, kernel_bytes
from unime_jax.planning.counting.operations import Moved, Operation
from unime_jax.planning.counting.sources import Frames, frames, source

# Of a loop with a computed end, from the type of its state and the scopes of the source it is in.
Trips = Callable[[str, str], int | None]

# They name or forward buffers, and move none.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
    + ("call", "after-all", "iota", "partition-id", "replica-id", "add-dependency", "opt-barrier")
    + ("async-start", "async-update", "async-done", "custom-call")
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one chip moves in one call.

    Attributes:
      ici: sent, by kind of collective, by the usual ring algorithms.
      hbm: read and written by every instruction that runs, as buffers lie in the compiled program;
        what its fusions keep on the chip is not in it.
      unknown_loops: loops of unknown trip count; their bodies count once.
      operations: the same bytes by operation.
    """

    ici: dict[str, float]
    hbm: float
    unknown_loops: int
    operations: dict[Operation, Moved] = dataclasses.field(default_factory=dict)

    def times(self, trips: int) -> "Traffic":
        """The traffic of a loop with this body."""
        ici = {kind: trips * size for kind, size in self.ici.items()}
        operations = {key: moved.times(trips) for key, moved in self.operations.items()}
        return Traffic(ici, trips * self.hbm, self.unknown_loops, operations)

    @property
    def bytes(self) -> float:
        """All bytes."""
        return sum(self.ici.values()) + self.hbm


def traffic(text: str, trips: Trips) -> Traffic:
    """Traffic of one chip, from optimised HLO text.

    `trips` gets the type of the state of each loop whose end is computed, and its scopes, as in
    "jit(step)/jvp(name)/while"; None: not known.

    Raises:
      ValueError: the text is none of a module.
    """
    module, stack = parse(text), frames(text)

    @functools.cache
    def run(name: str) -> Traffic:
        """Traffic of one run of a computation."""
        scope = module.computations[name]
        return _sum(
            _with_operation(module, stack, scope, line, run, trips) for line in scope.values()
        )

    return run(module.entry)


def _sum(parts: Iterable[Traffic]) -> Traffic:
    ici: dict[str, float] = {}
    operations: dict[Operation, Moved] = {}
    hbm, unknown_loops = 0.0, 0
    for part in parts:
        for kind, size in part.ici.items():
            ici[kind] = ici.get(kind, 0.0) + size
        for key, moved in part.operations.items():
            operations[key] = operations[key] + moved if key in operations else moved
        hbm, unknown_loops = hbm + part.hbm, unknown_loops + part.unknown_loops
    return Traffic(ici, hbm, unknown_loops, operations)


def _with_operation(
    module: Module,
    stack: Frames,
    scope: Computation,
    line: Instruction,
    run: Callable[[str], Traffic],
    trips: Trips,
) -> Traffic:
    """Traffic of an instruction; of one that moves bytes itself with its operation."""
    moved = _instruction(module, scope, line, run, trips)
    sent = sum(moved.ici.values())
    if moved.operations or not moved.bytes:
        return moved
    operations: dict[Operation, Moved] = {}
    if moved.hbm:
        written = min(_written_bytes(module, scope, line), moved.hbm)
        key = _operation(module, stack, line)
        operations[key] = Moved(moved.hbm - written, written, 0.0, 1)
    if sent:  # of a fusion that may compute something besides
        key = _operation(module, stack, _collective_inside(module, line))
        own = operations.get(key, Moved(0.0, 0.0, 0.0, 1))
        operations[key] = dataclasses.replace(own, sent=sent)
    return dataclasses.replace(moved, operations=operations)


def _operation(module: Module, stack: Frames, line: Instruction) -> Operation:
    results = arrays(line.result)
    largest = max(results, key=bytes_of).partition("{")[0] if results else ""
    opcode = line.opcode.removesuffix("-start")
    return Operation(opcode, *source(module, stack, line), largest)


def _collective_inside(module: Module, line: Instruction) -> Instruction:
    """The collective that a fusion holds, or the instruction itself."""
    if line.opcode != "fusion":
        return line
    inside = module.computations[line.called("calls")].values()
    return next((x for x in inside if x.opcode.removesuffix("-start") in COLLECTIVES), line)


def _instruction(
    module: Module,
    scope: Computation,
    line: Instruction,
    run: Callable[[str], Traffic],
    trips: Trips,
) -> Traffic:
    match line.opcode:
        case "while":
            count = trip_count(module, scope, line)
            count = trips(line.type, _scopes(module, line)) if count is None else count
            body = run(line.called("body"))
            return _sum([body, Traffic({}, 0.0, 1)]) if count is None else body.times(count)
        case "conditional":
            return max(map(run, line.branches), key=lambda branch: branch.bytes)
        case "call" | "async-start":
            return run(line.called("to_apply") or line.called("calls"))
        case "fusion":
            name = line.called("calls")
            step = _step_of_chain(module, name)
            ici = {} if step == "later" else run(name).ici
            return Traffic(ici, _fusion_bytes(module, scope, line, passes_on=bool(step)), 0)
    kind = line.opcode.removesuffix("-start")
    ici = {}
    if kind in COLLECTIVES:
        ici = {kind: _ring_bytes(kind, bytes_of(line.result), group_size(module, line))}
    return Traffic(ici, _plain_bytes(scope, line), 0)


def _scopes(module: Module, loop: Instruction) -> str:
    """The source's scopes around a loop, of itself or of what it repeats."""
    for line in (loop, *module.computations[loop.called("body")].values()):
        if name := re.search(r'\bop_name="([^"]*)"', line.attributes):
            return name[1]
    return ""


def _ring_bytes(opcode: str, result: float, chips: int) -> float:
    """Bytes that one of `chips` in a ring sends for a collective with a result of so many bytes."""
    others = (chips - 1) / chips
    match opcode:
        case "all-reduce":  # a reduce-scatter and an all-gather
            return 2 * others * result
        case "reduce-scatter":  # the operand is `chips` times the result
            return (chips - 1) * result
        case "collective-permute" | "collective-broadcast":
            return result
    return others * result  # all-gather, all-to-all


def _step_of_chain(module: Module, computation: str) -> str:
    """Whether a fusion is the "first" or a "later" step of an asynchronous collective; "": none.

    A TPU's compiler cuts a collective into steps that run beside other work; each of them has an
    instruction that stands for all of it.
    """
    lines = module.computations[computation].values()
    if not any(line.opcode in COLLECTIVES and "chain_id=" in line.attributes for line in lines):
        return ""
    starts = any('"AsyncCollectiveStart"' in line.attributes for line in lines)
    return "first" if starts else "later"


def _plain_bytes(scope: Computation, line: Instruction) -> float:
    """HBM bytes of an instruction that is no fusion."""
    if is_kernel(line):
        return kernel_bytes(scope, line)
    if line.opcode in _FREE or line.opcode.endswith("-done"):
        return 0
    opcode, result = line.opcode.removesuffix("-start"), line.result
    if line.opcode == "copy-start":
        return hbm_bytes(line.type)  # from and to
    if opcode in ("dynamic-slice", "slice", "gather"):
        in_hbm = hbm_bytes(scope[line.operands[0]].type)
        return hbm_bytes(result) + (bytes_of(result) if in_hbm else 0)
    if opcode == "dynamic-update-slice":
        return 2 * hbm_bytes(scope[line.operands[1]].type)
    operands = [scope[name].type for name in line.operands if name in scope]
    return hbm_bytes(result) + sum(map(hbm_bytes, operands))


def _fusion_bytes(
    module: Module, scope: Computation, fusion: Instruction, *, passes_on: bool
) -> float:
    """HBM bytes of a fusion: of what it slices only the slices, of what it updates the updates.

    `passes_on`: results that are arguments as well are not touched.
    """
    arguments_passed = {int(pair[1]) for pair in _passed(fusion)} if passes_on else set()
    name = fusion.called("calls")
    read = sum(
        _read(module, name, number, scope[operand].type)
        for number, operand in enumerate(fusion.operands)
        if number not in arguments_passed
    )
    return read + _fusion_written(module, fusion, passes_on=passes_on)


def _passed(fusion: Instruction) -> list[tuple[str, str]]:
    """Numbers of results, "" of the only one, with those of the arguments that they are."""
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", fusion.attributes)
    return re.findall(r"\{(\d*)\}: \((\d+),", aliases[1]) if aliases else []


def _written_bytes(module: Module, scope: Computation, line: Instruction) -> float:
    """HBM bytes that an instruction writes, of those that it moves."""
    opcode = line.opcode.removesuffix("-start")
    if opcode == "fusion":
        passes_on = bool(_step_of_chain(module, line.called("calls")))
        return _fusion_written(module, line, passes_on=passes_on)
    if opcode == "dynamic-update-slice":
        return hbm_bytes(scope[line.operands[1]].type)
    return hbm_bytes(arrays(line.type)[0] if line.opcode == "copy-start" else line.result)


def _fusion_written(module: Module, fusion: Instruction, *, passes_on: bool) -> float:
    """HBM bytes that a fusion writes; see `_fusion_bytes`."""
    passed = {pair[0] for pair in _passed(fusion)} if passes_on else set()
    name = fusion.called("calls")
    inside, root = module.computations[name], module.root(name)
    is_tuple = fusion.type.startswith("(")
    written = 0.0
    for number, type in enumerate(arrays(fusion.type)):
        if (str(number) if is_tuple else "") in passed:
            continue
        result = inside[root.operands[number]] if root.opcode == "tuple" else root
        written += min(hbm_bytes(type), _written(module, inside, result))
    return written


def _read(module: Module, computation: str, number: int, type: str) -> float:
    """HBM bytes that a fused computation reads of one argument, which has this type."""
    inside = module.computations[computation].values()
    names = {
        line.name for line in inside if line.opcode == "parameter" and int(line.arguments) == number
    }
    whole, part = hbm_bytes(type), 0.0
    for line in inside:  # in order: what is read is defined before
        if not names & set(line.operands):
            continue
        if line.opcode == "bitcast":
            names.add(line.name)
        elif line.opcode in ("dynamic-slice", "slice", "gather") and line.operands[0] in names:
            part += bytes_of(line.type)
        elif line.opcode == "dynamic-update-slice" and line.operands[0] in names:
            continue  # in place
        elif line.opcode == "fusion":
            inner = line.called("calls")
            used = [number for number, name in enumerate(line.operands) if name in names]
            part += sum(_read(module, inner, number, type) for number in used)
        else:
            return whole
    return min(whole, part)


def _written(module: Module, inside: Computation, result: Instruction) -> float:
    """Bytes of a fusion's result that it writes: of an update in place, the update."""
    while result.opcode == "bitcast" and result.operands:
        result = inside[result.operands[0]]
    if result.opcode == "fusion":
        name = result.called("calls")
        return _written(module, module.computations[name], module.root(name))
    is_update = result.opcode == "dynamic-update-slice"
    return bytes_of(inside[result.operands[1]].type) if is_update else math.inf
