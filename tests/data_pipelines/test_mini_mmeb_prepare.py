"""MiniMMEB on disk: what is built, that it is the same bytes again, and that it needs no TF."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines import mini_mmeb
from data_pipelines.mini_mmeb import builder as builder_module
from data_pipelines.mini_mmeb import content, digits
from tests import children
from tests.tables import for_each

ROOT = Path(__file__).parents[2]
SMALL = {"train_rows": 6, "eval_rows": 3}
PARTS = ("train", "eval", "composition", "images")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    mini_mmeb.prepare(folder, seed=1, **SMALL)
    return folder


def opened(data_dir, config):
    return tfds.builder_from_directory(str(data_dir / "mini_mmeb" / config / "1.0.0"))


def contents(data_dir):
    """Bytes of every file by name, but for TFDS's own notes on the build."""
    root = data_dir / "mini_mmeb"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".config" not in path.parts
    }


def test_permissions_are_those_of_new_files_and_another_seed_gives_other_bytes(data_dir, tmp_path):
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    files = [path for path in (data_dir / "mini_mmeb").rglob("*") if path.is_file()]
    assert not [path for path in files if path.stat().st_mode != usual]

    # Another seed gives other bytes.
    (tmp_path := tmp_path / "data").mkdir()
    mini_mmeb.prepare(tmp_path, seed=2, **SMALL)
    first, other = contents(data_dir), contents(tmp_path)
    records = [name for name in first if "array_record" in name]
    assert len(records) == 11 + 16 + 3 + 1
    assert all(first[name] != other[name] for name in records)


def test_train_rows_have_mmeb_columns_and_images(data_dir):
    built = opened(data_dir, "train")
    assert set(built.info.splits) == {source.name for source in content.SOURCES}
    for source in content.SOURCES:
        rows = built.as_data_source(source.name)
        assert len(rows) == SMALL["train_rows"]
        for number, row in enumerate(rows):
            assert set(row) == set(builder_module.FEATURES["train"])
            assert row["source"].decode() == source.name
            assert row["id"].decode() == f"{source.name}-{number:06d}"
            for text, side in (("qry", "qry"), ("pos_text", "pos")):
                path, image = row[f"{side}_image_path"], row[f"{side}_image"]
                assert bool(path) == bool(image) == (b"<|image_1|>" in row[text])
                if image:
                    assert Image.open(io.BytesIO(image)).size in {(48, 48), (96, 48), (48, 96)}
            assert len(row["neg_text"]) == len(row["neg_image_path"]) == len(row["neg_image"])

    # Every named image is there and decodes
    images = {
        row["path"]: row["image"] for row in opened(data_dir, "images").as_data_source("images")
    }
    named = set()
    built = opened(data_dir, "eval")
    assert set(built.info.splits) == {dataset.name for dataset in content.DATASETS}
    for name in built.info.splits:
        for row in built.as_data_source(name):
            assert len(row["tgt_text"]) == len(row["tgt_img_path"])
            named |= {row["qry_img_path"], *row["tgt_img_path"]}
    built = opened(data_dir, "composition")
    assert set(built.info.splits) == {"replace", "swap", "add"}
    for name in built.info.splits:
        rows = built.as_data_source(name)
        assert len(rows) == SMALL["eval_rows"]
        assert all(row["caption"] != row["negative_caption"] for row in rows)
        named |= {row["image_path"] for row in rows}
    assert named - {b""} == set(images)
    for path, image in images.items():
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        assert pixels.shape[-1] == 3 and np.ptp(pixels) > 60, path

    # Metadata is readable and names the false negatives
    facts = opened(data_dir, "eval").info.metadata
    assert facts["datasets"]["NewObjects"] == {"meta": "CLS", "split": "OOD"}
    noted = json.loads((data_dir / "mini_mmeb/train/1.0.0/metadata.json").read_text())
    for source in content.SOURCES:
        rows = content.train_rows(source, 1, SMALL["train_rows"])
        groups = noted["false_negatives"][source.name]["groups"]
        assert groups == content.false_negatives(rows)


def test_a_finished_dataset_costs_nothing_and_other_arguments_are_refused(data_dir):
    before = contents(data_dir)
    start = time.perf_counter()
    mini_mmeb.prepare(data_dir, seed=1, **SMALL)
    assert time.perf_counter() - start < 0.5
    with pytest.raises(ValueError, match="seed=1; asked for seed=5"):
        mini_mmeb.prepare(data_dir, seed=5, **SMALL)
    with pytest.raises(ValueError, match="must be positive"):
        mini_mmeb.prepare(data_dir, seed=1, train_rows=0, eval_rows=3)
    assert contents(data_dir) == before

    # What is built may be read only. Nothing is written, not even a lock.
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    mini_mmeb.prepare(data_dir, seed=1, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}


def test_an_interrupted_build_is_taken_up_again_and_gives_the_same_bytes(
    data_dir, tmp_path, monkeypatch
):
    class Stopped(BaseException):
        pass

    calls = []

    def encode(picture):
        calls.append(picture)
        if len(calls) > 30:
            raise Stopped
        return real(picture)

    real = builder_module.encode
    with monkeypatch.context() as patch:
        patch.setattr(builder_module, "encode", encode)
        with pytest.raises(BaseException):  # noqa: B017 - TFDS wraps what a generator raises
            mini_mmeb.prepare(tmp_path, seed=1, **SMALL)
    assert not any((tmp_path / "mini_mmeb" / part / "1.0.0").exists() for part in PARTS)
    mini_mmeb.prepare(tmp_path, seed=1, **SMALL)
    assert contents(tmp_path) == contents(data_dir)


@pytest.mark.slow
def test_building_and_reading_load_no_tensorflow_and_importing_loads_nothing(tmp_path):
    program = f"""
import sys
from data_pipelines import mini_mmeb
heavy = {{"sklearn", "tensorflow_datasets", "transformers", "numpy", "PIL"}} & set(sys.modules)
assert not heavy, heavy
mini_mmeb.prepare({str(tmp_path)!r}, seed=0, train_rows=2, eval_rows=1)
import tensorflow_datasets as tfds
built = tfds.builder_from_directory({str(tmp_path / "mini_mmeb/train/1.0.0")!r})
assert built.as_data_source("Objects")[0]["qry_image"].startswith(b"\\x89PNG")
assert "tensorflow" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# Several at once, and after a kill


def prepare_slowly(folder, seconds, bundle):
    """With digits that are read already: scikit-learn takes longer to import than all is built."""
    digits._bundle, encode = lambda: bundle, builder_module.encode

    def slow(picture):
        time.sleep(seconds)
        return encode(picture)

    builder_module.encode = slow
    mini_mmeb.prepare(folder, seed=1, **SMALL)


@pytest.mark.slow
def test_two_at_once_build_it_once_also_after_one_that_was_killed(data_dir, tmp_path):
    folder, bundle = tmp_path / "data", digits._bundle()
    killed = children.start(prepare_slowly, folder, 0.1, bundle, output=tmp_path / "killed.log")
    while not list(folder.glob("mini_mmeb/train/incomplete.*")):
        assert killed.poll() is None, killed.said()
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    (folder / "mini_mmeb" / ".incomplete_backbone").mkdir()
    running = [
        children.start(prepare_slowly, folder, 0.0, bundle, output=tmp_path / f"{n}.log")
        for n in range(2)
    ]
    codes = [one.wait(timeout=120) for one in running]
    assert codes == [0, 0], [one.said() for one in running]
    built, expected = contents(folder), contents(data_dir)  # a row's columns have no order
    assert {n: len(b) for n, b in built.items()} == {n: len(b) for n, b in expected.items()}
    names = {path.name for path in (folder / "mini_mmeb").rglob("*")}
    assert not [name for name in names if "incomplete" in name or "lock" in name]


@for_each("damage", [b"", b"[]", b"null", b"\xff\x00", b'{"seed": '])
def test_a_record_that_cannot_be_read_is_named(tmp_path, damage):
    (tmp_path / "mini_mmeb").mkdir()
    (tmp_path / "mini_mmeb" / "parameters.json").write_bytes(damage)
    with pytest.raises(ValueError, match="parameters.json cannot be read .*another data_dir"):
        mini_mmeb.prepare(tmp_path, seed=1, **SMALL)
