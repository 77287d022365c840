"""Archives: members with their bytes or nothing at all, and nothing outside the folder."""

import io
import os
import tarfile

import pytest

from data_pipelines.benchmarks import unpack as module
from data_pipelines.benchmarks.unpack import unpack_all
from tests.data_pipelines.benchmarks.folder_hub import make_zip
from tests.tables import for_each

MEMBERS = {"a/1.jpg": os.urandom(3000), "a/b/2.jpg": b"", "c d.txt": b"\xff\xfe"}


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info is not data:
                info.size = len(data)
            archive.addfile(info, None if info is data else io.BytesIO(data))


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cut(path, pieces=3):
    """The parts of a file in the hub's place of it."""
    data = path.read_bytes()
    path.unlink()
    step = -(-len(data) // pieces)
    for number in range(pieces):
        part = path.with_name(f"{path.name}-{number:02}")
        part.write_bytes(data[number * step : (number + 1) * step])


@for_each("ending", ["zip", "tar", "tar.gz", "tgz"])
def test_members_keep_their_bytes_whole_or_in_parts(ending, tmp_path):
    make = make_zip if ending == "zip" else make_tar
    mode = {} if ending in ("zip", "tar") else {"mode": "w:gz"}
    (tmp_path / "data").mkdir()
    make(tmp_path / f"data/x.{ending}", MEMBERS, **mode)
    unpack_all(tmp_path, [f"data/x.{ending}"])
    assert tree(tmp_path / "data/x") == MEMBERS
    # In parts, with a root of the archive's own name, which is left out, beside what macOS adds.
    rooted = {f"y/{name}": data for name, data in MEMBERS.items()}
    make(
        tmp_path / f"data/y.{ending}", rooted | {"__MACOSX/y/._1": b"", "y/.DS_Store": b"1"}, **mode
    )
    cut(tmp_path / f"data/y.{ending}")
    unpack_all(tmp_path, [f"*y.{ending}*"])
    assert tree(tmp_path / "data/y") == MEMBERS
    # What is there is not made again, also if its archive is gone.
    (tmp_path / "data/x/a/1.jpg").unlink()
    (tmp_path / f"data/x.{ending}").unlink()
    unpack_all(tmp_path, [f"data/x.{ending}"])
    assert not (tmp_path / "data/x/a/1.jpg").exists()
    with pytest.raises(FileNotFoundError, match=rf"no archive z\.{ending}"):
        unpack_all(tmp_path, [f"z.{ending}"])
    assert sorted(path.name for path in (tmp_path / "data").iterdir())[:2] == ["x", "y"]
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_is_left_of_an_archive_that_is_damaged_or_dangerous(tmp_path, monkeypatch):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    cases = [
        (make_zip, {"good.txt": b"1", "../evil.txt": b"1"}, r"'\.\./evil.txt' leads out"),
        (make_tar, {"good.txt": b"1", "/evil.txt": b"1"}, r"'/evil.txt' leads out"),
        (make_tar, {"good.txt": b"1", "link": link}, "'link' is a link"),
        (make_tar, {"good": b"1", "good/1.txt": b"1"}, "is damaged"),
    ]
    for number, (make, members, why) in enumerate(cases):
        path = tmp_path / f"{number}.{'zip' if make is make_zip else 'tar'}"
        make(path, members)
        with pytest.raises(ValueError, match=why) as caught:
            unpack_all(tmp_path, [path.name])
        assert path.name in str(caught.value)
        assert not (tmp_path / str(number)).exists()
    make_tar(tmp_path / "t.tar.gz", MEMBERS, mode="w:gz")
    make_tar(tmp_path / "u.tar", {"a": os.urandom(100_000)})
    make_zip(tmp_path / "v.zip", MEMBERS)
    for name in ("t.tar.gz", "u.tar", "v.zip"):
        cut(tmp_path / name)
        last = (tmp_path / f"{name}-02").read_bytes()
        (tmp_path / f"{name}-02").unlink()
        with pytest.raises(ValueError, match=rf"{name}-00 to {name}-01 is damaged, or a part"):
            unpack_all(tmp_path, [f"{name}*"])
        (tmp_path / f"{name}-02").write_bytes(last)
        (tmp_path / f"{name}-01").unlink()
        with pytest.raises(ValueError, match=rf"{name}-00, {name}-02 are not all parts"):
            unpack_all(tmp_path, [f"{name}*"])
    make_tar(tmp_path / "w.tar", {"a": b"1" * 512, "b": b"2"})
    os.truncate(tmp_path / "w.tar", 1024)  # between two members
    with pytest.raises(ValueError, match=r"w\.tar is damaged.* the end of the archive is missing"):
        unpack_all(tmp_path, ["w.tar"])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not (tmp_path.parent / "evil.txt").exists()

    # A kill leaves a folder of another name, which the next start removes.
    make_zip(tmp_path / "k.zip", MEMBERS)
    write, written = module._write, []

    def killed(member, folder):
        if written:
            raise KeyboardInterrupt
        written.append(member.name)
        write(member, folder)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            unpack_all(tmp_path, ["k.zip"])
    assert not (tmp_path / "k").exists()
    (tmp_path / "k.partial").mkdir()
    (tmp_path / "k.partial/half.jpg").write_bytes(b"1")  # as SIGKILL leaves it
    unpack_all(tmp_path, ["k.zip"])
    assert tree(tmp_path / "k") == MEMBERS
