"""JSON lines: every line that is not blank is a row, wherever a block of the scan ends."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.formats.writers import write_jsonl
from tests.tables import for_each
from unime_jax.data.formats import jsonl, open_dataset
from unime_jax.data.quarantine import BadExample

LINES = [b'{"a": 1}', b'  {"a": "\xc3\xa4"}\t', b"", b" \t", b"\r", b'{"a": 3}\r', b"{", b"x"]


@given(st.lists(st.sampled_from(LINES), max_size=12), st.booleans(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_rows_are_the_lines_that_are_not_blank(tmp_path_factory, lines, ends, block):
    file = tmp_path_factory.mktemp("lines") / "pairs.jsonl"
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK", block)
        rows = open_dataset(file)["pairs"]
    wanted = [(n, line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert len(rows) == len(wanted)
    for index, (number, line) in enumerate(wanted):
        assert rows.row_id(index) == f"line {number}"
        try:
            expected = json.loads(line)
        except ValueError:
            with pytest.raises(BadExample, match=f"'pairs', example 'line {number}': no JSON"):
                rows[index]
        else:
            assert rows[index] == expected


@for_each("before", [b"", b"\xef\xbb\xbf"])
@for_each("end", [b"\n", b"\r\n"])
@for_each("last", [True, False])
def test_marks_of_editors(tmp_path, before, end, last):
    file = tmp_path / f"{len(before)}{len(end)}.jsonl"
    file.write_bytes(before + b'{"a": 1}' + end + b'{"a": 2}' + (end if last else b""))
    (rows,) = open_dataset(file).values()
    assert [rows[i] for i in range(len(rows))] == [{"a": 1}, {"a": 2}]
    assert rows.columns == ("a",)


BAD = {
    b"[1, 2]": "a row is a JSON object, not \\[1, 2\\]",
    b'{"a": 1} {"a": 2}': "no JSON: Extra data",
    b'{"a": "\xff"}': "no JSON: 'utf-8' codec can't decode",
    b"[" * 5000: "no JSON: ",
    b'{"a": "' + b"x" * 100 + b'"}': "a line of 110 bytes; the limit is 90",
}


@for_each("line", BAD)
def test_a_broken_line_is_a_bad_row(tmp_path, monkeypatch, line):
    if b"x" in line:
        monkeypatch.setattr(jsonl, "MAX_LINE", 90)
    (tmp_path / "pairs.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    rows = open_dataset(tmp_path)["pairs"]
    with pytest.raises(BadExample, match=BAD[line]):
        rows[1]
    assert rows.columns == ("a",)


def test_columns_are_those_of_the_first_good_rows_and_rows_take_eight_bytes_each(tmp_path):
    # Columns are those of the first rows that are good.
    lines = ["{"] + [json.dumps({"a": 1, "b": 2})] + [json.dumps({"a": 1, "c": 2})] * 99
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert open_dataset(tmp_path)["pairs"].columns == ("a", "b", "c")
    (tmp_path / "pairs.jsonl").write_text("{\n{\n")
    with pytest.raises(BadExample, match="example 'line 1': no JSON"):
        _ = open_dataset(tmp_path)["pairs"].columns

    # An empty file has no rows.
    for content in ("", "\n \n"):
        (tmp_path / "pairs.jsonl").write_text(content)
        assert len(open_dataset(tmp_path)["pairs"]) == 0
    assert len(open_dataset(write_jsonl(tmp_path, [{"a": 1}]))["pairs"]) == 1

    # Many rows take eight bytes each.
    count = 200_000
    row = json.dumps({"query": "a question", "positive": "x" * 80}) + "\n"
    (tmp_path / "pairs.jsonl").write_text(row * count)
    tracemalloc.start()
    rows = open_dataset(tmp_path)["pairs"]
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == count and rows[count - 1] == json.loads(row)
    assert size < 8.5 * count + 2**20
    assert peak < 4 * jsonl.BLOCK + 32 * count  # not the 24 MB of the file and a list of lines
