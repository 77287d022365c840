"""Bytes that a compiled program moves over ICI, and between HBM and chip.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
its loops run: counted loops say how often, and of loops whose end is computed (over live chunks)
the caller knows.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

from unime_jax.planning.hlo import (
    COLLECTIVES,
    Instruction,
    Module,
    arrays,
    hbm_size,
    members,
    parse,
    size,
    trip_count,
)

Trips = Callable[[str], int | None]  # of a loop with an unknown end, from the type of its state

# What names or forwards buffers, without moving any.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
    + ("call", "after-all", "iota", "partition-id", "replica-id", "add-dependency", "opt-barrier")
    + ("async-start", "async-update", "async-done", "custom-call")
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of one chip in one call, in bytes.

    Attributes:
      ici: sent, by kind of collective, by the usual ring algorithms.
      hbm: read and written by every instruction that is run, as buffers lie in the compiled
        program; what its fusions keep on the chip is not in it.
      unknown: loops of which nobody knew how often they run, counted once.
    """

    ici: dict[str, float]
    hbm: float
    unknown: int


def count(text: str, trips: Trips) -> Traffic:
    """Traffic of one chip, from optimised HLO text.

    `trips` gets the types of a loop's state where its end is computed; None: not known either.
    """
    module = parse(text)
    found = _walk(module, module.entry, trips)
    ici = {kind: found[kind] for kind in COLLECTIVES if found.get(kind)}
    return Traffic(ici, found.get("hbm", 0.0), int(found.get("unknown", 0)))


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
                times = trip_count(module, body, one)
                if times is None:
                    times = trips(one.kind)
                total["unknown"] += times is None
                inner, scale = walk(one.called("body") or ""), 1 if times is None else times
                add({key: n if key == "unknown" else n * scale for key, n in inner.items()})
            elif one.opcode == "conditional":
                branches = [walk(name) for name in one.branches]
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
                    total[kind] += ring_bytes(kind, one.result, members(module, one))
                total["hbm"] += _plain_bytes(body, one)
        return total

    return walk(computation)


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


def _plain_bytes(body: dict[str, Instruction], one: Instruction) -> float:
    """HBM bytes of an instruction that is no fusion."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0
    opcode, result = one.opcode.removesuffix("-start"), one.result
    if opcode == "copy" and one.opcode != opcode:
        return hbm_size(one.kind)  # from and to
    if opcode in ("dynamic-slice", "slice", "gather"):
        return hbm_size(result) + (size(result) if hbm_size(body[one.operands[0]].kind) else 0)
    if opcode == "dynamic-update-slice":
        return 2 * hbm_size(body[one.operands[1]].kind)
    return hbm_size(result) + sum(
        hbm_size(body[name].kind) for name in one.operands if name in body
    )


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
    kinds = arrays(fusion.kind)
    several = fusion.kind.startswith("(")
    passed = {where for where, _ in pairs}
    for number, kind in enumerate(kinds):
        result = inside[root.operands[number]] if root.opcode == "tuple" else root
        if (str(number) if several else "") not in passed:
            total += min(hbm_size(kind), _written(module, inside, result))
    return total


def _read(module: Module, computation: str, number: int, kind: str) -> float:
    """HBM bytes that a fused computation reads of one argument, which has the type `kind`."""
    inside = module.computations[computation].values()
    names = {
        one.name for one in inside if one.opcode == "parameter" and int(one.arguments) == number
    }
    whole, part = hbm_size(kind), 0.0
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
