"""The operations of a compiled program that move most, so that waste has a name and a line."""

import dataclasses
from collections.abc import Callable, Sequence

from unime_jax.planning.costs import Moved, Operation, Traffic

MOST = 10  # operations that are listed, of HBM and of ICI
HBM_HEADER = "| read GB | written GB | times | operation | result | source |"
ICI_HEADER = "| sent GB | times | operation | result | source |"


@dataclasses.dataclass(frozen=True)
class Mover:
    """Bytes that an operation moves in a step, on one chip.

    Attributes:
      operation: of HLO, and what it was compiled from, with the pass: "fusion: mul, backward".
      result: type of the largest array among the results.
      source: its line and those that call it, innermost first; "": not known.
      read: bytes from HBM.
      written: bytes to HBM.
      sent: bytes over ICI.
      runs: instructions that run, a loop's as often as it runs.
    """

    operation: str
    result: str
    source: str
    read: float
    written: float
    sent: float
    runs: int


def of_hbm(moved: Traffic) -> list[Mover]:
    """The largest readers and writers of HBM, by the sum of both."""
    return _largest(moved, lambda each: each.read + each.written)


def of_ici(moved: Traffic) -> list[Mover]:
    """The largest collectives."""
    return _largest(moved, lambda each: each.sent)


def _largest(moved: Traffic, size: Callable[[Moved], float]) -> list[Mover]:
    moving = [item for item in moved.operations.items() if size(item[1])]
    return [_mover(*item) for item in sorted(moving, key=lambda item: -size(item[1]))[:MOST]]


def _mover(key: Operation, each: Moved) -> Mover:
    operation = f"{key.opcode}: {key.name}" if key.name else key.opcode
    return Mover(operation, key.result, key.source, **dataclasses.asdict(each))


def tables(hbm: Sequence[Mover], ici: Sequence[Mover]) -> str:
    """Markdown tables of both; "" where nothing is known."""
    lines: list[str] = []
    if hbm:
        lines += [HBM_HEADER, "|---" * 6 + "|"]
        lines += [f"| {_gb(x.read)} | {_gb(x.written)} | {_described(x)} |" for x in hbm]
    if ici:
        lines += ["", ICI_HEADER, "|---" * 5 + "|"]
        lines += [f"| {_gb(x.sent)} | {_described(x)} |" for x in ici]
    return "\n".join(lines)


def _described(mover: Mover) -> str:
    return f"{mover.runs:,} | {mover.operation} | {mover.result} | {mover.source}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f}" if size >= 1e11 else f"{size / 1e9:.3g}"
