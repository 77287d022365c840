"""CSV and TSV: rows are those of Python's csv, found one by one."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tables import for_each
from unime_jax.data.formats import open_dataset
from unime_jax.data.quarantine import BadExample

CELLS = st.text('ab", \n\r\t\u2028\x0bé[', max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=6), st.sampled_from([",", "\t"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_cells_come_back(tmp_path_factory, cells, delimiter, marked):
    folder = tmp_path_factory.mktemp("cells")
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("query", "positive"), *cells])
    ending = "csv" if delimiter == "," else "tsv"
    encoded = text.getvalue().encode("utf-8-sig" if marked else "utf-8")
    (folder / f"pairs.{ending}").write_bytes(encoded)
    rows = open_dataset(folder)["pairs"]
    kept = [pair for pair in cells if len(pair) > 1]
    assert [tuple(rows[i].values()) for i in range(len(rows))] == kept
    assert rows.columns == ("query", "positive")


def test_rows_lie_between_quoted_blank_and_long_lines_and_fit_the_header(tmp_path, monkeypatch):
    # Lines are counted through quoted and blank ones.
    (tmp_path / "pairs.csv").write_text('a,b\r\n\r\n"1\n2\n3",x\r\n\n4,"y ""z"""\n \n5,w')
    rows = open_dataset(tmp_path)["pairs"]
    assert [rows[i] for i in range(len(rows))] == [
        {"a": "1\n2\n3", "b": "x"},
        {"a": "4", "b": 'y "z"'},
        {"a": "5", "b": "w"},
    ]
    assert [rows.row_id(i) for i in range(3)] == ["line 3", "line 7", "line 9"]

    # A cell may be large.
    image = "x" * 300_000  # more than csv takes by default
    (tmp_path / "pairs.csv").write_text(f"a,b\n1,{image}\n")
    assert open_dataset(tmp_path)["pairs"][0]["b"] == image

    (tmp_path := tmp_path / "next").mkdir()
    # A row of other cells than the header is bad, and the next is good.
    (tmp_path / "pairs.csv").write_bytes(b"a,b\n1,2,3\n1\n\xff,2\n1,2\n")
    rows = open_dataset(tmp_path)["pairs"]
    for index, reason in enumerate(("3 cells, where", "1 cells, where the header has 2", "utf-8")):
        with pytest.raises(BadExample, match=f"example 'line {index + 2}'.*{reason}"):
            rows[index]
    assert rows[3] == {"a": "1", "b": "2"}

    # A quotation mark that nothing closes is an error of the file.
    (tmp_path / "pairs.csv").write_text('a,b\n1,"2\n' + "x,y\n" * 2000)
    limit = csv.field_size_limit(4000)
    try:
        with pytest.raises(ValueError, match="the row of line 2: .*a quotation mark that nothing"):
            open_dataset(tmp_path)
    finally:
        csv.field_size_limit(limit)


@for_each(
    "content, reason",
    [
        (b"", "pairs.csv is empty; its first line must be a header"),
        (b"\n\n", "is empty"),
        (b"a,b,a\n1,2,3\n", "the header has 'a' more than once"),
        (b"\xff\xfea\n", "the header is not UTF-8"),
        (b"a,b\r1,2\r", "are lines ended by CR alone"),
    ],
)
def test_no_table(tmp_path, content, reason):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_dataset(tmp_path)
