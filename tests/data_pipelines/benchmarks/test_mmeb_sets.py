"""MMEB from raw files, as the hub has them, to scores and to training rows."""

import dataclasses
import functools
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.benchmarks import check, mmeb, prepare
from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.data.schema import to_example
from unime_jax.evaluation import score_table, scores, suite
from unime_jax.operations.recipes import base
from unime_jax.training import inputs

COLOURS = ("red", "green", "blue")
LABELS = {"HatefulMemes": 2, "VOC2007": 3}
IMAGE = "<|image_1|>\n"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(raw: Path, name: str, split: str, rows: list[dict]) -> None:
    (raw / name).mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, raw / name / f"{split}-00000-of-00001.parquet")


def evaluation_rows(apart: bool) -> dict[str, list[dict]]:
    """Three sets, and one that no average counts: colours to words, words to colours."""
    rows: dict[str, list[dict]] = {"VOC2007": [], "Wiki-SS-NQ": [], "CIFAR-100": []}
    words = "Identify the object shown in the image", "Represent the given image"
    find = "Find the document image that can answer the given query:"
    for number, colour in enumerate(COLOURS):
        others = [*COLOURS[number:], *COLOURS[:number]]
        label = {
            "qry_img_path": f"VOC2007/{colour}.png",
            "tgt_text": others,
            "tgt_img_path": [""] * 3,
        }
        page = {"qry_img_path": "", "tgt_img_path": [f"Wiki-SS-NQ/a/{c}.png" for c in others]}
        if apart:
            label |= {"qry_inst": IMAGE + words[0], "qry_text": "", "tgt_inst": ""}
            page |= {"qry_inst": find, "qry_text": colour, "tgt_inst": IMAGE + words[1]}
            page |= {"tgt_text": [""] * 3}
        else:
            label |= {"qry_text": f"{IMAGE}{words[0]}\n"}
            page |= {"qry_text": f"{find} {colour}\n", "tgt_text": [f"{IMAGE}{words[1]}\n"] * 3}
        rows["VOC2007"].append(label)
        rows["Wiki-SS-NQ"].append(page)
        rows["CIFAR-100"].append(label)
    return rows


def write_evaluation(raw: Path, apart: bool) -> None:
    for name, rows in evaluation_rows(apart).items():
        write(raw, name, "test", rows)


def write_images(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for colour in COLOURS:
            file.writestr(f"images/VOC2007/{colour}.png", png(colour))
            file.writestr(f"images/Wiki-SS-NQ/a/{colour}.png", png(colour))


def small(public):
    """A public set of three rows a subset, of which two are there."""
    read = functools.partial(mmeb.read, rows=3, labels=LABELS)
    counts = {"VOC2007": 3, "Wiki-SS-NQ": 3}
    return dataclasses.replace(public, counts=counts, read=read)


SETS = {public.name: public for public in mmeb.SETS}


def by_colour(items, asked):
    """Vectors of what an item shows or says, a blue picture taken for a green one; notes items."""
    vectors = []
    for item in asked:
        paths = (re.sub("benchmark://[^/]*/", "", media.path) for media in item.media)
        items.append((item.text, *paths))
        (image,) = decode_images(item, None) or [None]
        shown = image.getpixel((0, 0)) if image else [colour in item.text for colour in COLOURS]
        vectors.append(np.array(shown, float) @ [[1, 0, 0], [0, 1, 0], [0, 1.1 * bool(image), 1]])
    return np.array(vectors)


def evaluated(folder: Path, instructions: str, **data: str):
    """Scores of a prepared set, or of raw files, and the items that were encoded."""
    chosen = {"mmeb_folder": "", "images": "", "benchmark_folder": ""} | data
    opened = suite.make_suite(
        folder,
        **chosen,
        benchmark_names=(),
        instructions=instructions,
        composition_folder="",
        image_prompt="",
        caption_prompt="{caption}",
        video_prompt="<|video_1|>",
        limit=0,
        agreement=None,
        retrieval_data="",
        columns={},
    )
    items: list = []
    found, _ = suite.evaluate(opened, functools.partial(by_colour, items))
    return found, sorted(set(items))


def test_both_layouts_go_from_raw_files_to_the_same_scores(tmp_path):
    folder, raw = tmp_path / "sets", tmp_path / "raw"
    write_evaluation(raw / "mmeb", apart=False)
    write_images(raw / "mmeb" / "images.zip")
    write_evaluation(raw / "mmeb_instruct", apart=True)
    for name, place in (("mmeb", "a"), ("mmeb_instruct", "b")):
        prepare.prepare(small(SETS[name]), folder / place, raw / name, hub=None)
        check.check(small(SETS[name]), folder / place / name)
    record = json.loads((folder / "b" / "mmeb_instruct" / "set.json").read_text())
    assert record["counts"] == {"VOC2007": 3, "Wiki-SS-NQ": 3}
    assert record["candidates"] == {"VOC2007": [3, 3], "Wiki-SS-NQ": [3, 3]}
    link = folder / "a" / "mmeb" / "rows" / "VOC2007.parquet"
    assert link.is_symlink() and link.samefile(next(raw.glob("mmeb/VOC2007/*.parquet")))

    found, items = evaluated(folder, "data", benchmark_folder="a")
    assert found["datasets"] == {"VOC2007": pytest.approx(200 / 3), "Wiki-SS-NQ": 100}
    assert (found["VQA"], found["All"]) == (None, pytest.approx(250 / 3))
    absent = [name for name in scores.MMEB_V1 if name not in found["datasets"]]
    assert found["missing"] == absent and len(absent) == 34
    lines = score_table.table(None, found, "score").splitlines()
    assert lines[2] == f"All: mean of 2 of 36; without {', '.join(absent)}"
    assert lines[3:] == ["instructions: data"]

    assert evaluated(folder, "data", benchmark_folder="b") == (found, items)
    for place in ("a", "b"):
        worded, same = evaluated(folder, "vlm2vec", benchmark_folder=place)
        assert same == items and worded == found | {"instructions": "vlm2vec"}
        _, others = evaluated(folder, "qwen3_vl", benchmark_folder=place)
        assert (f"{IMAGE}Represent the user's input.\n", "Wiki-SS-NQ/a/red.png") in others

    # Raw files do, too; the dataset that no average counts is left out.
    for name in ("mmeb", "mmeb_instruct"):
        files = f"{name}/*/test-*.parquet"
        again = evaluated(raw, "data", mmeb_folder=files, images="mmeb/images")
        assert again == (found, items)


def test_the_second_layout_has_its_images_from_the_media_of_mmeb_v2(tmp_path):
    raw = tmp_path / "raw"
    write_evaluation(raw, apart=True)
    (raw / "image-tasks").mkdir()
    with tarfile.open(raw / "image-tasks" / "mmeb_v1.tar.gz", "w:gz") as file:
        for path in ("VOC2007", "Wiki-SS-NQ/a"):
            for colour in COLOURS:
                member = tarfile.TarInfo(f"MMEB/{path}/{colour}.png")
                member.size = len(png(colour))
                file.addfile(member, io.BytesIO(png(colour)))
    prepare.prepare(small(SETS["mmeb_instruct"]), tmp_path / "sets", raw, hub=None)
    found, _ = evaluated(tmp_path, "data", benchmark_folder="sets")
    assert found["All"] == pytest.approx(250 / 3)


def spoilt(raw: Path, what: str) -> None:
    rows = evaluation_rows(apart=False)["VOC2007"]
    if what == "rows":
        rows.pop()
    elif what == "candidates":
        rows[1] = rows[1] | {"tgt_text": ["red", "blue"], "tgt_img_path": ["", ""]}
    elif what == "uneven":
        rows[2] = rows[2] | {"tgt_img_path": [""]}
    elif what == "column":
        rows = [{k: v for k, v in row.items() if k != "tgt_text"} for row in rows]
    elif what == "no list":
        rows = [row | {"tgt_text": "red"} for row in rows]
    elif what == "image":
        (raw / "images" / "VOC2007" / "red.png").unlink()
    elif what == "images":
        (raw / "images").rename(raw / ".elsewhere")
    write(raw, "VOC2007", "test", rows)
    if what == "damaged":
        (raw / "VOC2007" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    if what == "all":
        for file in raw.glob("*/*.parquet"):
            file.unlink()


@for_each(
    ("what", "message"),
    [
        ("rows", "VOC2007 has 2 rows in place of 3"),
        ("candidates", "VOC2007, row 1: 2 candidates in place of 3"),
        ("uneven", "VOC2007, row 2: 3 tgt_text but 1 tgt_img_path"),
        ("column", "has no column tgt_text"),
        ("no list", "tgt_text must be a list"),
        ("image", r"VOC2007: 1 images are missing in .*images, such as VOC2007/red.png"),
        ("images", "images are missing: no folder of .* has VOC2007/red.png"),
        ("damaged", "VOC2007.* cannot be read"),
        ("all", r"has no <set>/test-\*.parquet of MMEB, such as ImageNet-1K/test-00000-of-00001"),
    ],
)
def test_raw_files_that_are_not_the_public_ones_are_refused(tmp_path, what, message):
    raw = tmp_path / "raw"
    write_evaluation(raw, apart=False)
    write_images(raw / "images.zip")
    with zipfile.ZipFile(raw / "images.zip") as file:
        file.extractall(raw)
    spoilt(raw, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mmeb.read(raw, tmp_path / "set", rows=3, labels=LABELS)
    assert not list(tmp_path.glob("set/rows/*"))


def test_training_sets_are_read_where_they_lie_a_split_and_so_many_rows(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "sets"
    (raw / "images_zip").mkdir(parents=True)
    for name, count in (("VOC2007", 3), ("MSCOCO", 2)):
        query = "Identify the object shown in the image"
        rows = [
            {
                "qry": f"{IMAGE}{query}\n",
                "qry_image_path": f"images/{name}/Train/{colour} hot dog.png",
                "pos_text": colour,
                "pos_image_path": "",
                "neg_text": "",
                "neg_image_path": "",
            }
            for colour in COLOURS[:count]
        ]
        write(raw, name, "original", rows)
        write(raw, name, "diverse_instruction", [row | {"pos_text": "other"} for row in rows])
        with zipfile.ZipFile(raw / "images_zip" / f"{name}.zip", "w") as file:
            for colour in COLOURS[:count]:
                file.writestr(f"{name}/Train/{colour} hot dog.png", png(colour))
    public = dataclasses.replace(SETS["mmeb_train"], counts={"VOC2007/original": 3})
    prepare.prepare(public, folder, raw, hub=None)
    check.check(public, folder / "mmeb_train")
    record = json.loads((folder / "mmeb_train" / "set.json").read_text())
    assert record["counts"] == {"MSCOCO/original": 2, "VOC2007/original": 3}

    data = base.mini().data
    data.folder, data.train = str(tmp_path), "raw/*/original-*.parquet"
    data.first_rows = 1
    data.first_rows_by_source = {"VOC2007/original": 2}
    rows = inputs.open_rows(config_reader.read(config.DataConfig, data.to_dict()))
    assert {name: len(own) for name, own in rows.items()} == {
        "MSCOCO/original": 1,
        "VOC2007/original": 2,
    }
    for number, colour in enumerate(COLOURS[:2]):
        example = to_example("VOC2007/original", rows["VOC2007/original"][number])
        assert example.positive.text == colour and example.query.media[0].data == png(colour)
    with pytest.raises(IndexError):
        rows["VOC2007/original"][2]
    data.train = str(folder / "mmeb_train" / record["diverse_instruction"])
    data.first_rows_by_source = {}
    rows = inputs.open_rows(config_reader.read(config.DataConfig, data.to_dict()))
    assert [row["pos_text"] for own in rows.values() for row in own] == ["other"] * 2
