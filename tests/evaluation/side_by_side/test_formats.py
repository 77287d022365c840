"""Tables in Markdown, LaTeX and CSV: complete, and with nothing in them that acts."""

import csv
import io
import re

from unime_jax.evaluation.side_by_side import formats
from unime_jax.evaluation.side_by_side.lines import Cell, Comparison, Line

EVIL = r'a|b & 50% $x$ #1 _y_ {z} ~^\end{table} <b>"q", *s*'
COLUMNS = [("All",), ("retrieval", "queries"), ("retrieval", "R@1")]


def comparison(columns=COLUMNS):
    own = Line(EVIL, 2, {c: Cell(40.123456, 1.5, -2.25, (-3.0, 0.04)) for c in columns})
    base = Line("base", 1, {columns[0]: Cell(42.0)})
    paper = Line("Paper-7B", 0, {columns[0]: Cell(63.6, derived=True)}, (f"{EVIL}, Table 1",))
    return Comparison([own, base, paper], {"averages": columns}, "base", ["a remark"])


def test_every_format_has_all_numbers_and_says_what_is_published():
    compared = comparison()
    text = formats.markdown_text(compared, "Title")
    head, _, own, base, paper = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (head, own, base, paper)]
    assert {len(row) for row in cells} == {5}  # the name's pipe is no border
    assert own.endswith(
        r"| 2 | 40.1 ± 1.5 -2.2 [-3.0, +0.0] | 40 -2 [-3, +0] | 40.1 ± 1.5 -2.2 [-3.0, +0.0] |"
    )
    assert paper.startswith("| Paper-7B †1 | – | 63.6\\* | – |")
    assert "- †1 " in text and "a remark." in text and "<b>" not in text.replace("\\<b", "")
    for words in (
        "Changes are from base",
        "† marks published",
        "standard deviation",
        "36 datasets",
    ):
        assert words in text, words

    rows = list(csv.reader(io.StringIO(formats.csv_text(compared))))
    assert rows[0][:7] == ["model", "kind", "runs", "source", "derived", "All", "All std"]
    assert rows[1][:3] == [EVIL, "run", "2"] and rows[1][5:10] == [
        "40.123456",
        "1.5",
        "-2.25",
        "-3",
        "0.04",
    ]
    assert rows[3][:6] == ["Paper-7B", "published", "", f"{EVIL}, Table 1", "All", "63.6"]
    assert {len(row) for row in rows} == {len(rows[0])}

    text = formats.latex_text(compared, "Title\n\\evil")
    assert text.splitlines()[0] == "% Title \\evil"
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {4}
    assert r"$-$2.2 [$-$3.0, +0.0]" in text and r"\textsuperscript{\dag 1}" in text
    assert text.count(r"\end{table}") == 1 and r"\textbackslash{}end\{table\}" in text
    assert not re.search(r"(?<!\\)[%#_]", text.split("\n", 1)[1].replace("$-$", ""))


def test_many_columns_stand_below_each_other():
    columns = [("datasets", f"set_{n}") for n in range(formats.WIDE + 1)]
    table = formats.markdown_table(comparison(columns), columns).splitlines()
    assert formats.is_wide(columns) and not formats.is_wide(columns[:4])
    assert len(table) == 2 + len(columns) and table[0].count("†1") == 1
    assert table[3].startswith("| set_1 | 40.1")
