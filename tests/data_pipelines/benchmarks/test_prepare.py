"""From the command line: each set by itself, whole or named with the reason, never made twice."""

import json
import logging
import sys
import types

import pytest
from absl import flags

from data_pipelines.benchmarks import __main__ as command
from data_pipelines.benchmarks import catalogue, download, nli
from data_pipelines.benchmarks.hub import UnreachableError
from data_pipelines.benchmarks.public_set import Prepared
from tests.data_pipelines.benchmarks.folder_hub import COMMIT, FolderHub, make_zip, public
from unime_jax.data.pairs import open_pairs


def read_captions(raw, folder):
    """Rows of captions.txt beside the images that were unpacked."""
    images = raw / "images"
    lines = (raw / "captions.txt").read_text().splitlines()
    (folder / "rows").mkdir(exist_ok=True)
    rows = [{"image": line.split()[0], "captions": [line]} for line in lines]
    (folder / "rows/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Prepared("rows/*.jsonl", str(images), {"test": len(rows)}, {"extra": 1})


@pytest.fixture
def files_of_set(tmp_path):
    make_zip(tmp_path / "made.zip", {"1.jpg": b"jpeg", "2.jpg": b"jpeg, too"})
    archive = (tmp_path / "made.zip").read_bytes()
    return {"captions.txt": b"1.jpg a cat\n2.jpg a dog\n", "images.zip": archive}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line over a catalogue and a hub of one's own: exit status and output."""

    def run(sets, hub, *arguments, broken=None):
        known = catalogue.Catalogue({s.name: s for s in sets}, broken or {})
        monkeypatch.setattr(catalogue, "load", lambda: known)
        monkeypatch.setattr(command, "HuggingFaceHub", lambda: hub)
        monkeypatch.setattr(download, "WAITS", (0, 0))
        flags.FLAGS.unparse_flags()
        for name in ("sets", "raw", "list", "check"):
            flags.FLAGS[name].unparse()
        flags.FLAGS(["benchmarks", f"--folder={tmp_path / 'sets'}", *arguments])
        status = command.main(["benchmarks"])
        return status, "".join(capsys.readouterr())

    logger = logging.getLogger("absl")
    level = logger.level
    yield run
    flags.FLAGS.unparse_flags()
    logger.setLevel(level)  # which the flags and the command have set


def captions_set(**changes):
    values = {"files": ("captions.txt", "images.zip"), "archives": ("images.zip",)}
    values |= {"read": read_captions, "counts": {"test": 2}}
    return public(**values | changes)


def test_sets_are_made_once_each_by_itself_and_failures_are_named(run, files_of_set, tmp_path):
    def broken_reader(raw, folder):
        raise KeyError("captions")

    hub = FolderHub(files_of_set)
    sets = [
        captions_set(),
        captions_set(name="few", counts={"test": 3, "val": 1}),
        captions_set(name="broken", read=broken_reader),
        captions_set(name="lost", files=("captions.tsv",)),
        captions_set(name="elsewhere", repository="", note="Ask its authors."),
        captions_set(name="last", counts={}),
    ]
    status, said = run(sets, hub, broken={"some.module": "ImportError: no"})
    assert status == 1 and "2 of 6 sets are in" in said
    for words in (
        "not prepared: few: few: rows are missing, or too many: test has 2 in place of 3; val has "
        "none in place of 1",
        "not prepared: broken: KeyError: 'captions'",
        "not prepared: lost: dataset o/set at",
        "not prepared: elsewhere: elsewhere is not on the hub. Ask its authors. Put the files into",
        "not prepared: the sets of some.module, which cannot be imported: ImportError: no",
    ):
        assert words in said
    folder = tmp_path / "sets"
    assert [(folder / s.name / "set.json").exists() for s in sets] == [True, *[False] * 4, True]
    assert json.loads((folder / "set/set.json").read_text()) == {
        "name": "set",
        "kind": "captions",
        "rows": "rows/*.jsonl",
        "images": "raw/images",
        "source": "o/set",
        "revision": COMMIT,
        "counts": {"test": 2},
        "extra": 1,
    }
    assert (folder / "set/raw/images/2.jpg").read_bytes() == b"jpeg, too"
    assert not list(folder.rglob("*.lock")) and not list(folder.rglob("*.partial"))

    # Whole sets are not touched again; another revision of the catalogue is another set.
    hub.asked.clear()
    assert run([sets[0], sets[5]], hub)[0] == 0 and not hub.asked
    newer = captions_set(revision="9" * 7)
    newer_hub = FolderHub(files_of_set)
    newer_hub.commit = lambda repository, revision: COMMIT
    assert run([newer], newer_hub)[0] == 0 and newer_hub.asked == []  # the same commit: files stay

    # --list and --check need no hub.
    why = {"some.module": "ImportError: no"}
    assert run(sets, None, "--list", broken=why)[0] == 1
    assert run(sets, None, "--list", "--sets=last", broken=why)[0] == 0  # it is not of that module
    status, said = run(sets[:2], None, "--list")
    assert status == 0 and [line.split()[-1] for line in said.splitlines()[1:]] == ["yes", "no"]
    assert "few" in said and COMMIT[:7] in said
    assert run(sets, None, "--check", "--sets=set,last")[0] == 0
    assert run(sets, None, "--check")[0] == 0  # those that are there
    (folder / "set/raw/images/1.jpg").unlink()
    rows = folder / "last/rows/test.jsonl"
    rows.write_text(rows.read_text() * 2)
    status, said = run(sets, None, "--check", "--sets=set,last,few")
    assert status == 1 and "0 of 3 sets are right" in said
    assert "wrong: set: set: 1 images are missing in" in said and "such as 1.jpg" in said
    assert "has {'test': 4} rows, and set.json says {'test': 2}" in said
    assert "wrong: few: few is not prepared" in said
    assert run(sets, None, "--sets=sett")[0] == 2


def test_local_copies_are_used_where_they_lie_and_a_network_is_waited_for_once(
    run, files_of_set, tmp_path
):
    copies = tmp_path / "copies"
    copies.mkdir()
    for name, data in files_of_set.items():
        (copies / name).write_bytes(data)
    sets = [captions_set(), captions_set(name="other")]
    assert run(sets, None, f"--raw={copies}", "--sets=set")[0] == 0
    record = json.loads((tmp_path / "sets/set/set.json").read_text())
    assert (record["images"], record["revision"]) == (str(copies / "images"), "")
    assert not (tmp_path / "sets/set/raw").exists()
    assert run(sets, None, "--check", "--sets=set")[0] == 0
    # What was unpacked by hand will do, without its archive.
    (copies / "other").mkdir()
    (copies / "other/captions.txt").write_text("1.jpg a cat\n2.jpg a dog\n")
    (copies / "images").rename(copies / "other/images")
    assert run(sets, None, f"--raw={copies}", "--sets=other")[0] == 0
    (copies / "other").rename(copies / "away")
    (tmp_path / "sets/other/set.json").unlink()
    # Of several sets, each has a folder; nothing is downloaded.
    status, said = run(sets, None, f"--raw={copies}")
    assert status == 1
    assert f"not prepared: other: there are no local copies of other in {copies / 'other'}" in said
    # A network that is down is waited for once, not for every set.
    hub = FolderHub()

    def down(repository, revision):
        hub.asked.append(repository)
        raise UnreachableError("no route to host")

    hub.commit = down
    sets = [captions_set(name=name, repository=name) for name in ("a", "b")]
    status, said = run(sets, hub)
    assert status == 1 and said.count("no route to host") >= 2
    assert hub.asked == ["a", "a", "a", "b"]


def test_readers_of_the_catalogue_stand_alone(run, tmp_path, monkeypatch):
    """A module that cannot be imported takes its own sets alone; two of one name are an error."""
    known = catalogue.load()
    for name in known.broken:  # none but readers that are not there
        assert "No module named" in known.broken[name] and name in known.broken[name]
    assert {public.kind for public in known.sets.values()} <= {
        "mmeb", "captions", "composition", "clustering", "retrieval", "pairs",
    }  # fmt: skip
    for one_set in known.sets.values():
        assert one_set.repository or one_set.note, one_set.name
        assert one_set.files or not one_set.repository, one_set.name
    module = types.ModuleType("twice")
    module.SETS = (captions_set(name="nli"),)
    monkeypatch.setitem(sys.modules, f"{catalogue.PACKAGE}.twice", module)
    with pytest.raises(ValueError, match="two sets 'nli'"):
        catalogue.load(("nli", "twice"))
    alone = catalogue.load(("nli", "absent"))
    assert list(alone.sets) == ["nli"] and list(alone.broken) == [f"{catalogue.PACKAGE}.absent"]
    assert alone.chosen(["nl?"]) == list(nli.SETS)
    with pytest.raises(ValueError, match=r"no set 'nll'; 'nli' may be meant.*absent is broken"):
        alone.chosen(["nll"])
    # NLI is trained on as it is.
    lines = 'sent0,sent1,hard_neg\n"A, man",Somebody,Nobody\nTwo dogs,Dogs,A cat\n'
    hub = FolderHub({nli.FILE: lines.encode()})
    assert "0 of 0 sets" in run(nli.SETS, hub)[1]  # training data are fetched if they are named
    assert run(nli.SETS, hub, "--sets=*")[0] == 0
    (rows,) = open_pairs(tmp_path / "sets/nli/rows/nli.csv", {}).values()
    assert len(rows) == 2 and rows[0]["qry"] == "A, man"
    assert run(nli.SETS, None, "--check")[0] == 0
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / nli.FILE).write_text("sent0,sent1\n1,2\n")
    with pytest.raises(ValueError, match="has no hard_neg among its columns"):
        nli.read(tmp_path / "raw", tmp_path)
