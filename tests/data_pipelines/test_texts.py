"""Sentence files to a training source: every row is there, once, on one side."""

import csv
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import texts
from data_pipelines.texts import Triple
from data_pipelines.texts.prepare import split
from tests.tables import for_each
from unime_jax.data.formats import open_dataset
from unime_jax.data.schema import to_example


def write_csv(path, rows, header=("sent0", "sent1", "hard_neg")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def read_back(folder):
    return {
        name: [to_example(name, source[i], str(i)) for i in range(len(source))]
        for name, source in open_dataset(folder).items()
    }


NLI = [
    ('A man, "asleep"', "Somebody sleeps.", "A man runs."),
    ('A man, "asleep"', "A person rests.", "Nobody is there."),
    ("Zwei Hunde laufen\u2028im Schnee", "Hunde im Freien", ""),
    ("one", "two", "three"),
    ("four", "", ""),
]


def test_nli_rows_become_examples_also_from_the_command_line(tmp_path):
    texts.prepare([write_csv(tmp_path / "nli.csv", NLI)], tmp_path / "nli", test_rows=1)
    splits = read_back(tmp_path / "nli")
    found = {
        (e.query.text, e.positive.text, *(n.text for n in e.negatives))
        for split in splits.values()
        for e in split
    }
    assert found == {(a, b or a, *([c] if c else [])) for a, b, c in NLI}
    sides = [{e.query.text for e in split} for split in splits.values()]
    assert splits.keys() == {"train", "test"} and not sides[0] & sides[1]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    texts.prepare([tmp_path / "nli.csv"], tmp_path / "nli", test_rows=1)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    # Any text file
    (tmp_path / "a.txt").write_text("first\n\n  second \r\nthird", encoding="utf-8")
    (tmp_path / "b.txt").write_text("fourth\n", encoding="utf-8")
    texts.prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", test_rows=2)
    splits = read_back(tmp_path / "out")
    assert len(splits["test"]) == 2
    pairs = {(e.query.text, e.positive.text) for split in splits.values() for e in split}
    assert pairs == {(word, word) for word in ("first", "second", "third", "fourth")}

    # From the command line.
    (tmp_path := tmp_path / "command").mkdir()
    file = write_csv(tmp_path / "nli.csv", NLI)
    command = [sys.executable, "-m", "data_pipelines.texts", f"--input={file}"]
    subprocess.run([*command, f"--folder={tmp_path / 'nli'}", "--test_rows=1"], check=True)
    assert sum(map(len, read_back(tmp_path / "nli").values())) == len(NLI)


@given(
    rows=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30),
    test_rows=st.integers(0, 30),
)
def test_rows_of_one_sentence_stay_together(rows, test_rows):
    made = [Triple(word, str(number)) for number, word in enumerate(rows)]
    if test_rows >= len(rows):
        with pytest.raises(ValueError, match="leave none"):
            split(made, test_rows)
        return
    try:
        train, test = split(made, test_rows)
    except ValueError:  # the rows of one sentence are too many to be on either side
        assert test_rows > len(rows) - max(map(rows.count, rows))
        return
    assert sorted(train + test) == sorted(made) and len(test) >= test_rows
    assert not {row.sent0 for row in train} & {row.sent0 for row in test}


@for_each(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,1\n", "no column sent0"),
        ("a.csv", "sent0,sent1,hard_neg\nx,y,z\n,y,z\n", "row 2: sent0 is empty"),
        ("a.json", "{}", "neither .csv nor .txt"),
        ("a.txt", "only\n", "leave none to train on"),
    ],
)
def test_mistakes_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        texts.prepare([tmp_path / name], tmp_path / "out", test_rows=1)
    assert not (tmp_path / "out").exists()
