"""A comparison as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence

from unime_jax.data.strange_texts import markdown, shown
from unime_jax.evaluation.side_by_side.columns import Column, is_count, label
from unime_jax.evaluation.side_by_side.lines import Cell, Comparison, Line

WIDE, LONG = 12, 110  # columns, and characters of their names, that stand beside each other
NONE = "–"
LEADS = {  # what the numbers under a heading are
    "averages": "hit@1 in percent. All is the plain mean over datasets, meta_mean that of the four"
    " meta tasks. VisDoc is the mean nDCG@5 of MMEB-V2's 24 visual-document sets, Video the"
    " mean hit@1 of its 18 video sets, V-CLS, V-QA, V-RET and V-MRET those of one kind.",
    "video": "hit@1 of MMEB-V2's video sets, in percent.",
    "chosen": "Means of the chosen datasets, in percent.",
    "datasets": "hit@1 in percent: how often the right candidate comes first.",
    "composition": "Percent of rows that are right by the rule of each set.",
    "retrieval": "Each query among the whole corpus of its set: percent, but for the median rank.",
    "captions": "Percent of captions (t2i) and images (i2t) that find each other among all of the"
    " set.",
    "distillation": "kl in nats, overlap of the ten nearest neighbours in percent.",
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def number(cell: Cell, column: Column, digits: int) -> str:
    """A mean with its spread over runs: "65.2 ± 0.4"; "*" marks what no paper prints."""
    if is_count(column):
        return f"{cell.mean:,.0f}"
    spread = f" ± {cell.spread:.{digits}f}" if cell.spread is not None else ""
    return f"{cell.mean:.{digits}f}{spread}{'*' if cell.derived else ''}"


def change(cell: Cell, digits: int) -> str:
    """A change from the baseline with its interval: "+1.3 [+0.2, +2.4]"; "" without one."""
    if cell.change is None:
        return ""
    if cell.interval is None:
        return signed(cell.change, digits)
    low, high = cell.interval
    return f"{signed(cell.change, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def signed(value: float, digits: int) -> str:
    """A number with its sign; what rounds to 0 is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def lead(heading: str) -> str:
    """What the numbers under a heading are; "" of kinds that are not known."""
    return LEADS.get(heading.partition(" of ")[0], "")


def is_wide(columns: Sequence[Column]) -> bool:
    """Whether scores stand below each other, and lines beside each other, to save width."""
    return len(columns) > WIDE or sum(len(label(column)) for column in columns) > LONG


def source_numbers(comparison: Comparison) -> dict[str, int]:
    """Sources of published lines, numbered from 1 as they come."""
    sources = dict.fromkeys(source for line in comparison.lines for source in line.sources)
    return {source: place for place, source in enumerate(sources, 1)}


def explanations(comparison: Comparison) -> list[str]:
    """What the tables' numbers are, then remarks, in sentences."""
    lines = comparison.lines
    cells = [cell for line in lines for cell in line.cells.values()]
    said = []
    if any(cell.spread is not None for cell in cells):
        said.append("± is the standard deviation over runs.")
    if comparison.baseline:
        said.append(
            f"Changes are from {comparison.baseline}, in points; in brackets their 95 % interval,"
            " by a paired bootstrap over rows. It says nothing of other seeds."
        )
    if any(line.sources for line in lines):
        said.append("† marks published rows: numbers of a paper, which were not measured here.")
    if any(cell.derived for cell in cells):
        said.append(
            "* marks a mean over MMEB's 36 datasets that follows from the published means of the"
            " four meta tasks."
        )
    return said + [f"{remark.rstrip('.')}." for remark in comparison.remarks]


def markdown_text(comparison: Comparison, title: str = "") -> str:
    """All tables, one a group of columns, then sources and explanations."""
    blocks = [f"# {markdown(title)}"] if title else []
    for name, columns in comparison.groups.items():
        blocks.append(f"## {markdown(name[:1].upper() + name[1:])}")
        blocks += [markdown(text)] if (text := lead(name)) else []
        blocks.append(markdown_table(comparison, columns))
    numbers = source_numbers(comparison)
    if numbers:
        blocks.append("\n".join(f"- †{n} {markdown(source)}" for source, n in numbers.items()))
    if said := explanations(comparison):
        blocks.append("\n".join(f"- {markdown(sentence)}" for sentence in said))
    return "\n\n".join(blocks) + "\n"


def markdown_table(comparison: Comparison, columns: Sequence[Column]) -> str:
    """One table: lines below each other, or beside each other where there are many columns."""
    head, *body = _grid(comparison, columns, markdown)
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def latex_text(comparison: Comparison, title: str = "") -> str:
    """All tables as LaTeX, each a `table` without packages, with its sources below it."""
    numbers = source_numbers(comparison)
    below = [f"\\textsuperscript{{{n}}} {latex(source)}" for source, n in numbers.items()]
    below += [latex(sentence) for sentence in explanations(comparison)]
    blocks = [f"% {shown(title)}"] if title else []
    for name, columns in comparison.groups.items():
        head, *body = _grid(comparison, columns, latex)
        heading = name[:1].upper() + name[1:]
        lines = [
            r"\begin{table}",
            r"\centering",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\hline",
            " & ".join(head) + r" \\",
            r"\hline",
            *(" & ".join(row) + r" \\" for row in body),
            r"\hline",
            r"\end{tabular}",
            f"\\caption{{{latex(f'{heading}. {lead(name)}'.rstrip())}}}",
            *(f"\\par\\raggedright\\footnotesize {text}" for text in below),
            r"\end{table}",
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def latex(text: str) -> str:
    """A text in LaTeX that shows it as it is."""
    return "".join(_LATEX.get(character, character) for character in shown(text))


def csv_text(comparison: Comparison) -> str:
    """One line a model: its kind and sources, and every score, with all its decimals.

    A column has further ones beside it where any line has them: "<name> std", "<name> change",
    "<name> change low" and "<name> change high".
    """
    columns = [column for group in comparison.groups.values() for column in group]
    parts: list[tuple[str, Callable[[Cell], float | None]]] = [
        ("", lambda cell: cell.mean),
        (" std", lambda cell: cell.spread),
        (" change", lambda cell: cell.change),
        (" change low", lambda cell: cell.interval[0] if cell.interval else None),
        (" change high", lambda cell: cell.interval[1] if cell.interval else None),
    ]
    cells = {c: [line.cells[c] for line in comparison.lines if c in line.cells] for c in columns}
    shown_parts = [
        (column, suffix, value)
        for column in columns
        for suffix, value in parts
        if any(value(cell) is not None for cell in cells[column])
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["model", "kind", "runs", "source", "derived"]
    writer.writerow([*head, *("/".join(c) + suffix for c, suffix, _ in shown_parts)])
    for line in comparison.lines:
        kind = "run" if line.runs else "published"
        derived = ", ".join("/".join(c) for c, cell in line.cells.items() if cell.derived)
        values = [
            value(line.cells[column]) if column in line.cells else None
            for column, _, value in shown_parts
        ]
        numbers = ["" if v is None else f"{v:.10g}" for v in values]
        writer.writerow(
            [shown(line.name), kind, line.runs or "", " | ".join(line.sources), derived, *numbers]
        )
    return buffer.getvalue()


def _grid(
    comparison: Comparison, columns: Sequence[Column], escape: Callable[[str], str]
) -> list[list[str]]:
    """Texts of a table's cells, the first row being its head."""
    lines = comparison.lines_of(columns)
    numbers = source_numbers(comparison)
    names = [_line_name(line, numbers, escape) for line in lines]
    cells = [[_cell(comparison, line, column, escape) for column in columns] for line in lines]
    labels = [escape(label(column)) for column in columns]
    if is_wide(columns):
        body = [[name, *(row[n] for row in cells)] for n, name in enumerate(labels)]
        return [["", *names], *body]
    counts = [str(line.runs or NONE) for line in lines]
    body = [[name, count, *row] for name, count, row in zip(names, counts, cells, strict=True)]
    return [["", "runs", *labels], *body]


def _line_name(line: Line, numbers: dict[str, int], escape: Callable[[str], str]) -> str:
    marks = ",".join(str(numbers[source]) for source in line.sources)
    if not marks:
        return escape(line.name)
    superscript = f"\\textsuperscript{{\\dag {marks}}}" if escape is latex else f" †{marks}"
    return escape(line.name) + superscript


def _cell(comparison: Comparison, line: Line, column: Column, escape: Callable[[str], str]) -> str:
    cell = line.cells.get(column)
    if cell is None:
        return escape(NONE)
    digits = comparison.digits(column)
    mean = number(cell, column, digits)
    text = f"{mean} {change(cell, digits)}".rstrip()
    if escape is latex:
        return re.sub(r"-(?=\d)", "$-$", latex(text))
    return text.replace("*", "\\*")
