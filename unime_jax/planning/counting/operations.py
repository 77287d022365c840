"""What a compiled program moves, by operation: instructions that do the same work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operation:
    """What instructions have in common that do the same work on arrays of the same size.

    Attributes:
      opcode: of HLO, such as "fusion".
      name: the operation that it was compiled from, and the pass: "dot_general, backward".
      source: its line and those that call it, innermost first, paths from the package on:
        "models/lora.py:40 < models/decoder.py:88"; "": the program does not say.
      result: type of the largest array among the results, such as "bf16[4,1792,3584]".
    """

    opcode: str
    name: str
    source: str
    result: str


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes that the instructions of an operation move in one call, on one chip.

    Attributes:
      read: from HBM.
      written: to HBM.
      sent: over ICI.
      runs: of all its instructions, a loop's body as often as it runs.
    """

    read: float
    written: float
    sent: float
    runs: int

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(
            self.read + other.read,
            self.written + other.written,
            self.sent + other.sent,
            self.runs + other.runs,
        )

    def times(self, trips: int) -> "Moved":
        """The same in a loop."""
        return Moved(trips * self.read, trips * self.written, trips * self.sent, trips * self.runs)
