"""Files that are whole or not there, and one message for every disk that takes no more."""

import errno
import os
import pathlib
import shutil
import subprocess

import pytest
from safetensors.numpy import save_file

from tests.tables import for_each
from unime_jax import files, main
from unime_jax.jobs import boundary
from unime_jax.operations import disk_errors


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 kB, full."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no permission to mount a file system")
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def by_numpy(path):
    import numpy as np

    np.savez(path, a=np.zeros(100_000))


def by_safetensors(path):
    import numpy as np

    save_file({"a": np.zeros(100_000)}, path)


def by_tensorstore(path):
    import numpy as np
    import tensorstore as ts

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    array = ts.open(spec, dtype=ts.float64, shape=[100_000], create=True).result()
    array.write(np.random.default_rng(0).normal(size=100_000)).result()


def by_matplotlib(path):
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(20, 20))
    figure.savefig(path, format="png")


WRITES = {
    "text": lambda path: path.write_text("a" * 100_000),
    "whole": lambda path: files.write_whole(path, "a" * 100_000),
    "folder of files": lambda path: (path.mkdir(), (path / "a").write_bytes(bytes(100_000))),
    "numpy": by_numpy,
    "safetensors": by_safetensors,
    "tensorstore": by_tensorstore,
    "matplotlib": by_matplotlib,
}


@for_each("how", WRITES)
def test_whoever_writes_a_full_disk_is_named(disk, tmp_path, how):
    with (
        pytest.raises(
            RuntimeError, match="No space left.*there is room.*the same command"
        ) as raised,
        disk_errors.explained(tmp_path, disk / "run"),
    ):
        WRITES[how](disk / "a")
    assert str(disk) in str(raised.value) and main.says_it_all(raised.value)
    for left in disk.glob("a*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_what_was_there_before_stays(disk):
    path = disk / "filler"
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left.*filler"):
        files.write_whole(path, b"a" * 10**6)
    assert path.read_bytes() == before and [p.name for p in disk.iterdir()] == ["filler"]


@for_each("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_every_way_that_disks_refuse(tmp_path, number):
    """Also from a library that has caught it and raised an error of its own."""
    with (
        pytest.raises(RuntimeError, match=f"{os.strerror(number)}.*the same command"),
        boundary.owning(tmp_path, "run.lock", "trains in"),
    ):
        try:
            raise OSError(number, os.strerror(number), "a/b")
        except OSError as error:
            raise KeyError("generator") from error
    assert list(tmp_path.iterdir()) == []


@for_each(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "a"),
        KeyError("a"),
        PermissionError(13, "no"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, disk_errors.explained(tmp_path):
        raise error
    assert raised.value is error


def test_what_is_set_aside_or_said_already_stays_so(tmp_path, caplog):
    # What is said already is not said again.
    error = RuntimeError("No space left on device: ...; then the same command goes on")
    with pytest.raises(RuntimeError) as raised, disk_errors.explained(pathlib.Path(tmp_path)):
        raise error
    assert raised.value is error

    # Set aside keeps the content and needs no luck.
    (tmp_path := tmp_path / "next").mkdir()
    caplog.clear()
    (tmp_path / "a.json").write_text("[]")
    files.set_aside(tmp_path / "a.json", "a list")
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("a.json.damaged-") and kept.read_text() == "[]"
    files.set_aside(tmp_path / "gone", "nothing")
    assert "cannot be renamed" in caplog.text


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And the name after it; so of a folder that is replaced, and of lines that are added."""
    flushed = []
    sync = os.fsync

    def noted(number):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{number}"))
        names = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp"))
        flushed.append(names if path == tmp_path else (path.suffix, path.read_text(), names))
        sync(number)

    monkeypatch.setattr(os, "fsync", noted)
    files.write_whole(tmp_path / "a", "new")
    assert flushed == [(".tmp", "new", []), ["a"]]
    flushed.clear()
    files.append(tmp_path / "a", "line\n")
    assert flushed == [("", "new\nline\n", ["a"])]
    flushed.clear()
    with files.replacing(tmp_path / "b", last="x") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "b").exists()
    assert flushed == [["a", "b"]]


def test_a_folder_under_its_name_is_whole_at_any_moment(tmp_path, monkeypatch):
    """Renamed away before it is removed: a kill in the midst would leave a part of it."""
    folder, removed = tmp_path / "hf", []
    remove = shutil.rmtree

    def watched(path, **options):
        removed.append(path)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    for names in ({"a", "b"}, {"c", "d"}):
        with files.replacing(folder, last="a") as partial:
            for name in names:
                (partial / name).touch()
        assert {file.name for file in folder.iterdir()} == names
    assert removed and folder not in removed
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
