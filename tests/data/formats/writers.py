"""Rows written in every format that `open_dataset` reads."""

import csv
import io
import json
import pathlib
import tarfile

import pyarrow
import pyarrow.parquet

SPLIT = "pairs"


def write_jsonl(folder: pathlib.Path, rows, name=f"{SPLIT}.jsonl") -> pathlib.Path:
    file = folder / name
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def write_csv(folder: pathlib.Path, rows, name=f"{SPLIT}.csv", delimiter=",") -> pathlib.Path:
    """Lists and dicts are JSON in a cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column, "") for column in columns)
            writer.writerow([json.dumps(c) if isinstance(c, list | dict) else c for c in cells])
    return folder / name


def write_tsv(folder: pathlib.Path, rows) -> pathlib.Path:
    return write_csv(folder, rows, f"{SPLIT}.tsv", "\t")


def write_parquet(folder: pathlib.Path, rows, name=f"{SPLIT}.parquet") -> pathlib.Path:
    """In row groups of three."""
    pyarrow.parquet.write_table(table(rows), folder / name, row_group_size=3)
    return folder / name


def write_saved(folder: pathlib.Path, rows) -> pathlib.Path:
    """As `DatasetDict.save_to_disk` of Hugging Face datasets: batches of two, two files."""
    saved = folder / "saved"
    split = saved / SPLIT
    split.mkdir(parents=True)
    half = (len(rows) + 1) // 2
    names = []
    for number, part in enumerate((table(rows)[:half], table(rows)[half:])):
        names.append(f"data-{number:05d}-of-00002.arrow")
        with pyarrow.ipc.new_stream(str(split / names[-1]), part.schema) as stream:
            stream.write_table(part, max_chunksize=2)
    files = [{"filename": name} for name in names]
    (split / "state.json").write_text(json.dumps({"_data_files": files, "_split": SPLIT}))
    (split / "dataset_info.json").write_text("{}")  # TFDS has one of this name, too
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": [SPLIT]}))
    return saved


def write_tar(folder: pathlib.Path, rows, name=f"{SPLIT}.tar") -> pathlib.Path:
    """A JSON object a row; bytes are members, by the name of their key."""
    with tarfile.open(folder / name, "w") as file:
        for number, row in enumerate(rows):
            members = {key: value for key, value in row.items() if isinstance(value, bytes)}
            values = {key: value for key, value in row.items() if key not in members}
            for key, content in ({"json": json.dumps(values).encode()} | members).items():
                member = tarfile.TarInfo(f"{number:04d}.{key}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return folder / name


def table(rows) -> pyarrow.Table:
    """Missing keys are null."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return pyarrow.table({key: [row.get(key) for row in rows] for key in columns})


WRITERS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "saved": write_saved,
    "tar": write_tar,
}
