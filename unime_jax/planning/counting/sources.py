"""Where instructions come from: the metadata of optimised HLO, by its tables of stack frames.

A compiled program lists files, lines and frames before its computations, and an instruction names
its innermost frame; older compilers write file and line beside the instruction.
"""

import dataclasses
import re

from unime_jax.planning.counting.hlo import Instruction, Module

PACKAGE = "unime_jax/"
# Scopes (`jax.named_scope`) of the models' parts, by which all passes name a layer.
PARTS = (
    *("decoder", "vision_tower", "text_tower", "encoder", "projector", "merger"),
    *("attention", "mlp", "image_tokens"),
)
DEPTH = 3  # lines of the package that say where an instruction comes from
_TABLES = ("FileNames", "FileLocations", "StackFrames")
_ROW = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Frames:
    """Stack frames of a program by number.

    Attributes:
      lines: source lines, such as "unime_jax/models/lora.py:40".
      callers: the frame that each is called from; a frame without one has none here.
    """

    lines: dict[int, str]
    callers: dict[int, int]

    def trace(self, frame: int) -> str:
        """The innermost lines of the package, "lora.py:40 < decoder.py:9", or one of elsewhere."""
        innermost = self.lines.get(frame, "")
        own: list[str] = []
        while frame in self.lines and len(own) < DEPTH:
            if self.lines[frame].startswith(PACKAGE):
                own.append(self.lines[frame].removeprefix(PACKAGE))
            frame = self.callers.get(frame, 0)
        return " < ".join(own) or innermost


def frames(text: str) -> Frames:
    """The stack frames of a program's text; none if it has no tables of them."""
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    rows: dict[int, str] | None = None
    for line in text.splitlines():
        if line.startswith(("ENTRY", "%")):  # computations come after all tables
            break
        if match := _ROW.match(line):
            if rows is not None:
                rows[int(match[1])] = match[2]
        elif line:
            rows = tables.get(line)
    files = {number: shortened(name.strip('"')) for number, name in tables["FileNames"].items()}
    places = {
        number: f"{files.get(_number(row, 'file_name_id'), '')}:{_number(row, 'line')}"
        for number, row in tables["FileLocations"].items()
    }
    rows = tables["StackFrames"]
    # The first frame has no caller. jaxlib 0.10 calls that 1, and its other numbers are one too
    # large as well.
    none = _number(rows[min(rows)], "parent_frame_id") if rows else 0
    callers = {number: _number(row, "parent_frame_id") - none for number, row in rows.items()}
    lines = {n: places.get(_number(row, "file_location_id"), "") for n, row in rows.items()}
    return Frames(lines, {number: caller for number, caller in callers.items() if caller > 0})


def source(module: Module, frames: Frames, line: Instruction) -> tuple[str, str]:
    """The operation and the source lines of an instruction, "" where the program does not say.

    A fusion without metadata has that of its result, else of the first instruction that has any.
    """
    name = line.called("calls") if line.opcode == "fusion" else ""
    inside = [module.root(name), *module.computations[name].values()] if name else []
    for each in (line, *inside):
        operation = re.search(r'\bop_name="([^"]*)"', each.attributes)
        if operation:
            return named(operation[1]), _place(frames, each)
    return "", _place(frames, line)


def _place(frames: Frames, line: Instruction) -> str:
    if match := re.search(r'\bsource_file="([^"]*)"(?: source_line=(\d+))?', line.attributes):
        return f"{shortened(match[1]).removeprefix(PACKAGE)}:{match[2] or ''}".rstrip(":")
    match = re.search(r"\bstack_frame_id=(\d+)", line.attributes)
    return frames.trace(int(match[1])) if match else ""


def named(op_name: str) -> str:
    """An operation with its part of the model and its pass: "dot_general of decoder.mlp, backward".

    Without a pass it is of nothing that is differentiated. A chunk that is encoded once more for
    its gradient goes "forward again"; what a layer computes once more besides, as its remat policy
    says, is "recomputed".
    """
    # A scope may be within transformations, as in "transpose(jvp(decoder))".
    inner = (re.search(r"(\w*)\)*$", scope) for scope in op_name.split("/"))
    # Once each: a collective that XLA combined has the names of all that it is made of.
    parts = dict.fromkeys(match[1] for match in inner if match and match[1] in PARTS)
    scopes = [scope for scope in op_name.split("/") if "jvp(" in scope]
    operation = op_name.rpartition("/")[2] or op_name
    if parts:
        operation += f" of {'.'.join(parts)}"
    if "rematted_computation" in op_name:
        return f"{operation}, recomputed"
    if not scopes:
        return operation
    if "transpose(" in scopes[-1]:
        return f"{operation}, backward"
    again = any("transpose(" in scope for scope in scopes)
    return f"{operation}, forward again" if again else f"{operation}, forward"


def shortened(file: str) -> str:
    """A path from the package on; of an installed package from its name on."""
    for folder in ("/site-packages/", "/" + PACKAGE):
        before, found, after = file.rpartition(folder)
        if found:
            return after if folder == "/site-packages/" else PACKAGE + after
    return file


def _number(row: str, key: str) -> int:
    match = re.search(rf"\b{key}=(\d+)", row)
    return int(match[1]) if match else 0
