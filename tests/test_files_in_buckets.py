"""Work directories in buckets: whole objects, folders put in place, locks, local copies."""

import json
import logging
import pathlib
import sys
import threading
import time

import numpy as np
import pytest

from unime_jax import files
from unime_jax.backbones import open_backbone
from unime_jax.data import images
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.embedding_store_writer import write
from unime_jax.data.formats import fingerprint
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadItem, Quarantine, read_quarantine
from unime_jax.operations import bucket_lock, lock_owner, workdir_lock
from unime_jax.operations.local_copies import local_copy
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training.metrics import MetricsWriter

RUN = "gs://bucket/run"


def content(bucket, name):
    return bucket.objects[f"bucket/{name}"].content


def test_paths_are_local_or_of_a_bucket_that_needs_gcsfs(monkeypatch):
    # Home is expanded.
    assert files.as_path("~/runs") == pathlib.Path.home() / "runs"

    # Without gcsfs, the error says what to install.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"pip install 'unime_jax\[gcs\]'"):
        files.as_path(RUN)

    # Local paths stay pathlib
    for text in ["runs/a", "/tmp/a:b", "a:/b/c"[2:], "./x"]:
        assert files.as_path(text) == pathlib.Path(text)

    # Other urls are refused and not taken for folders
    for text in ["s3://bucket/run", "gs:/bucket/run", "gs://", "http://host/run"]:
        with pytest.raises(ValueError, match="neither a path nor gs://<bucket>/<folder>"):
            files.as_path(text)


def test_files_are_seen_at_once_and_stay_when_a_write_is_refused(bucket):
    # What another process writes is seen at once.
    path = files.as_path(RUN) / "flag"
    assert not path.exists() and list(path.parent.glob("*")) == []
    bucket.put("bucket/run/flag", b"1", None)
    assert path.exists() and [p.name for p in path.parent.glob("*")] == ["flag"]

    # A refused write leaves what was there.
    bucket.objects.clear()
    path = files.as_path(RUN) / "config.json"
    files.write_whole(path, "{}")
    bucket.refused = "config"
    with pytest.raises(OSError, match="Forbidden"):
        files.write_whole(path, '{"a": 1}')
    assert files.read_object(path) == {} and bucket.names() == ["run/config.json"]


def test_lines_are_there_after_a_flush_and_damaged_files_set_aside(bucket):
    # Metrics are there after a flush, and survive a restart.
    workdir = files.as_path(RUN)
    with MetricsWriter(workdir, total_steps=3, wandb_project=None) as writer:
        writer.write(1, {"loss": 2.0})
        writer.flush()
        assert [
            json.loads(x)["step"] for x in content(bucket, "run/metrics.jsonl").splitlines()
        ] == [1]
        writer.write(2, {"loss": 1.0})
    assert any(name.startswith("run/tensorboard/events") for name in bucket.names())
    with MetricsWriter(workdir, total_steps=3, wandb_project=None, resume_step=1) as writer:
        writer.write(2, {"loss": 1.5})
    lines = [json.loads(x) for x in content(bucket, "run/metrics.jsonl").splitlines()]
    assert [(x["step"], x["loss"]) for x in lines] == [(1, 2.0), (2, 1.5)]

    # Bad items are added, and half a line is ended.
    path = files.as_path(RUN) / "quarantine.jsonl"
    files.write_whole(path, '{"source": "a')
    Quarantine(path).note([BadItem("a", "1", "", "torn")])
    Quarantine(path).note([BadItem("a", "2", "", "empty"), BadItem("a", "1", "", "torn")])
    assert [item.id for item in read_quarantine(path)] == ["1", "2"]

    # Damaged files are set aside.
    bucket.objects.clear()
    path = files.as_path(RUN) / "goodput.json"
    files.write_whole(path, "{")
    files.set_aside(path, "half of it")
    (name,) = bucket.names()
    assert name.startswith("run/goodput.json.damaged-") and content(bucket, name) == b"{"


def test_folders_are_moved_and_put_in_place_whole(bucket, tmp_path):
    # A folder is moved file by file.
    root = files.as_path(RUN)
    for name in ("checkpoints/2/a", "checkpoints/2/b/c", "checkpoints/20/a"):
        files.write_whole(root / name, name)
    files.move(root / "checkpoints" / "2", root / "bad" / "2")
    assert bucket.names() == ["run/bad/2/a", "run/bad/2/b/c", "run/checkpoints/20/a"]
    with pytest.raises(FileNotFoundError):
        files.move(root / "nothing", root / "bad" / "3")

    # One that is cut short has no last file.
    bucket.objects.clear()
    target = files.as_path(RUN) / "hf"
    with files.replacing(target, last="config.json") as folder:
        (folder / "config.json").write_text("1")
        (folder / "old.json").write_text("1")
    bucket.refused = "weights"
    with (
        pytest.raises(OSError, match="Forbidden"),
        files.replacing(target, last="config.json") as folder,
    ):
        (folder / "config.json").write_text("2")
        (folder / "weights").write_text("2")
    assert bucket.names() == []
    bucket.refused = ""
    with files.replacing(target, last="config.json") as folder:
        (folder / "config.json").write_text("2")
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("2")
    assert bucket.names() == ["run/hf/config.json", "run/hf/inner/weights"]
    newest = max(bucket.objects, key=lambda key: bucket.objects[key].generation)
    assert newest == "bucket/run/hf/config.json"
    assert not folder.exists()

    # An error while one is made leaves the earlier one.
    bucket.objects.clear()
    for target in (files.as_path(RUN) / "hf", tmp_path / "hf"):
        with files.replacing(target, last="config.json") as folder:
            (folder / "config.json").write_text("1")
        with (
            pytest.raises(RuntimeError, match="no"),
            files.replacing(target, last="config.json") as folder,
        ):
            raise RuntimeError("no")
        assert (target / "config.json").read_text() == "1"


def test_data_is_read_through_a_local_copy_and_stays_below_its_folder(
    bucket, tmp_path, monkeypatch
):
    # Vectors are written, and read through a copy.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vectors = np.eye(3, dtype=np.float32)
    write("gs://bucket/vectors", ["a", "b", "c"], vectors, block=2)
    assert "vectors/vectors/000001.npy" in bucket.names()
    opened = open_embeddings("gs://bucket/vectors")
    assert (opened.vectors_of(["c", "a"]) == vectors[[2, 0]]).all()
    assert tmp_path in opened.folder.parents
    with pytest.raises(ValueError, match="exists already"):
        write("gs://bucket/vectors", ["a"], vectors[:1])

    # So are pairs.
    root = files.as_path("gs://bucket/own")
    for name in ("pairs-00000-of-00002", "pairs-00001-of-00002", "other"):
        files.write_whole(root / f"{name}.jsonl", '{"query": {"image": "i/a"}, "positive": "p"}\n')
    files.write_whole(root / "i" / "a", b"pixels")
    sources = open_pairs(str(root), {})
    assert {name: len(rows) for name, rows in sources.items()} == {"other": 1, "pairs": 2}
    (image,) = sources["pairs"][1]["qry_image"]
    assert image.read() == b"pixels"
    assert list(open_pairs(str(root / "pairs-*.jsonl"), {})) == ["pairs"]
    assert list(open_pairs(str(root / "other.jsonl"), {})) == ["other"]
    assert fingerprint(root) == fingerprint(local_copy(root)) != ""
    with pytest.raises(FileNotFoundError):
        open_pairs("gs://bucket/absent", {})

    # Single images are read where they are; paths stay below the folder.
    files.write_whole(files.as_path("gs://bucket/images/a.png"), b"png")
    assert images.read_below("gs://bucket/images", "a.png") == b"png"
    with pytest.raises(images.ImageError, match="leaves the image folder"):
        images.read_below("gs://bucket/images", "../secret")
    with pytest.raises(FileNotFoundError):
        images.read_below("gs://bucket/images", "b.png")


def test_a_copy_is_made_again_when_something_changed_and_says_if_there_is_no_room(
    bucket, tmp_path, caplog, monkeypatch
):
    # A copy is made once and again when something changed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        root = files.as_path("gs://bucket/data")
        files.write_whole(root / "set" / "a.json", "1")
        files.write_whole(root / "set" / "deep" / "b.bin", "2")
        files.write_whole(root / "set2" / "c", "3")
        first = local_copy(root / "set")
        assert sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file()) == [
            "a.json",
            "deep/b.bin",
        ]
        assert first.name == "set" and local_copy(root / "set") == first
        assert [p.name for p in local_copy(root / "set", patterns=["*.json"]).iterdir()] == [
            "a.json"
        ]
        assert local_copy(root / "set" / "a.json").read_text() == "1"
        files.write_whole(root / "set" / "a.json", "9")
        assert (local_copy(root / "set") / "a.json").read_text() == "9"
        with pytest.raises(FileNotFoundError, match="gs://bucket/data/none"):
            local_copy(root / "none")
        assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.lock"))

    # A copy without room says so.
    (tmp_path := tmp_path / "next").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = files.as_path("gs://bucket/set/a")
    files.write_whole(path, bytes(100))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        local_copy(path)


def test_a_bucket_without_a_model_is_named(bucket):
    with pytest.raises(ValueError, match="gs://bucket/none has no files of a Hugging Face model"):
        open_backbone("gs://bucket/none", max_length=8)
    files.write_whole(files.as_path(RUN) / "hf" / "config.json", "{}")
    with pytest.raises(ValueError, match="open gs://bucket/run/hf"):
        open_backbone(RUN, max_length=8)


def test_stacks_of_a_hang_are_added(bucket):
    watch = Watchdog(files.as_path(RUN) / "stacks-0.txt", seconds=0, exit=False)
    watch._write_stacks()
    watch._write_stacks()
    assert content(bucket, "run/stacks-0.txt").decode().count("test_stacks_of_a_hang") == 2


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.1)
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(workdir_lock, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(bucket_lock, "SETTLE_SECONDS", 0.3)


def hold(**options):
    return workdir_lock.owned(files.as_path(RUN), "run.lock", what="trains in", **options)


def test_a_lock_refuses_a_second_owner_is_renewed_and_taken_over(bucket, quick, caplog):
    # A second owner is refused, and the lock goes with the first.
    with hold():
        with pytest.raises(workdir_lock.LockedError, match="gs://bucket/run is in use"), hold():
            pass
        assert bucket.names() == ["run/run.lock"]
    assert bucket.names() == []

    # Its owner renews it.
    with hold():
        first = bucket.objects["bucket/run/run.lock"].generation
        time.sleep(0.5)
        assert bucket.objects["bucket/run/run.lock"].generation > first

    # One of a host that is gone is taken over.
    caplog.clear()
    gone = json.loads(lock_owner.to_text(lock_owner.myself())) | {"host": "gone", "token": "x"}
    bucket.put("bucket/run/run.lock", json.dumps(gone).encode(), None)
    caplog.set_level(logging.WARNING)
    with hold():
        assert b'"gone"' not in content(bucket, "run/run.lock")
    assert "taking over from process" in caplog.text


def test_of_many_that_take_over_one_at_a_time_owns_it(bucket, quick):
    gone = json.loads(lock_owner.to_text(lock_owner.myself())) | {"host": "gone", "token": "x"}
    bucket.put("bucket/run/run.lock", json.dumps(gone).encode(), None)
    inside, most, done = [0], [0], []

    def work():
        with hold(wait=True):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3 and most == [1] and bucket.names() == []
