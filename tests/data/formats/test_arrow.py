"""Folders that `save_to_disk` of Hugging Face datasets writes, and what makes one unusable."""

import json

import pyarrow
import pytest

from tests.tables import for_each
from unime_jax.data.formats import open_dataset

ROWS = [{"query": f"q{n}", "positive": f"p{n}"} for n in range(5)]


def write_split(folder, **changes):
    """Five rows in two files."""
    folder.mkdir(parents=True)
    names = []
    for number, part in enumerate((ROWS[:3], ROWS[3:])):
        names.append(f"data-{number:05}-of-00002.arrow")
        table = pyarrow.Table.from_pylist(part)
        with pyarrow.ipc.new_stream(str(folder / names[-1]), table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "dev"} | changes
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_a_split_alone_has_its_name_and_files_are_in_the_order_of_its_state(tmp_path):
    write_split(tmp_path / "saved")
    (rows,) = open_dataset(tmp_path / "saved").items()
    assert rows[0] == "dev" and [rows[1][n] for n in range(5)] == ROWS
    swapped = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (1, 0)]
    write_split(tmp_path / "swapped", _data_files=swapped, _split=None)
    (rows,) = open_dataset(tmp_path / "swapped").items()
    assert rows[0] == "swapped" and [rows[1][n] for n in range(5)] == ROWS[3:] + ROWS[:3]


@for_each(
    ("splits", "state", "message"),
    [
        ({"splits": "train"}, {}, "dataset_dict.json has no list of splits"),
        ({"splits": ["train", 1]}, {}, "dataset_dict.json has no list of splits"),
        ({}, {}, "dataset_dict.json has no list of splits"),
        (None, {"_data_files": None}, "state.json has no list of data files"),
        (None, {"_data_files": ["a.arrow"]}, "state.json has no list of data files"),
        (None, {"_indices_data_files": [{"filename": "i"}]}, "chosen by an index beside them"),
        (None, {"_data_files": [{"filename": "b.arrow"}]}, "lacks b.arrow, which its state.json"),
    ],
)
def test_what_is_not_complete_is_named(tmp_path, splits, state, message):
    folder = write_split(tmp_path / "saved", **state)
    if splits is not None:
        (folder / "dataset_dict.json").write_text(json.dumps(splits))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(folder)
