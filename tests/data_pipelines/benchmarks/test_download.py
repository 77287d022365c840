"""Downloads: whatever is cut, damaged or refused, a file has its name only when it is right."""

import hashlib
import inspect
import shutil

import huggingface_hub
import pytest
from huggingface_hub import errors, file_download, hf_api

from data_pipelines.benchmarks import download as module
from data_pipelines.benchmarks import hub as hub_module
from data_pipelines.benchmarks.download import PART, download
from data_pipelines.benchmarks.hub import (
    HubFile,
    HuggingFaceHub,
    RefusedError,
    UnreachableError,
)
from tests.data_pipelines.benchmarks.folder_hub import BIG, COMMIT, SMALL, FolderHub, public
from tests.tables import for_each


def test_a_cut_download_goes_on_from_its_last_byte_and_ends_verified(tmp_path):
    # Bytes that come begin the waits anew, so that three cuts are outlasted by one wait.
    hub = FolderHub(cuts=[1000, 500, 700])
    manifest = download(public(), tmp_path, hub, waits=(0,))
    assert (tmp_path / "data/big.bin").read_bytes() == BIG
    assert (tmp_path / "rows.csv").read_bytes() == SMALL
    starts = [start for path, start in hub.asked[1:] if path == "data/big.bin"]
    assert starts == [0, 1000, 1500, 2200]
    assert manifest.commit == COMMIT and manifest.size == len(BIG) + len(SMALL)

    # A network that stays away is an error that says so, and keeps what has come ...
    (tmp_path / "data/big.bin").unlink()
    with pytest.raises(UnreachableError, match=r"2 more tries .* goes on from there"):
        download(public(), tmp_path, FolderHub(cuts=[300, 0, 0, 0]), waits=(0, 0))
    assert (tmp_path / f"data/big.bin{PART}").read_bytes() == BIG[:300]
    assert not (tmp_path / "data/big.bin").exists()
    # ... for another process, which knows the commit and asks for the rest alone.
    hub = FolderHub()
    download(public(), tmp_path, hub)
    assert hub.asked == [("data/big.bin", 300)]
    assert (tmp_path / "data/big.bin").read_bytes() == BIG
    hub = FolderHub()
    download(public(), tmp_path, hub)
    assert not hub.asked  # whole: no network


def test_files_that_are_not_what_the_hub_says_are_named_and_never_kept(tmp_path, monkeypatch):
    class Damaging(FolderHub):
        def send(self, path):
            return self.damage(self.content[path]) if path == "data/big.bin" else SMALL

    for damage, why in (
        (lambda data: data[:-1], f"{len(BIG) - 1} bytes in place of {len(BIG)}"),
        (lambda data: data + b"!", f"{len(BIG) + 1} bytes in place of {len(BIG)}"),
        (lambda data: b"!" + data[1:], f"SHA-256 .*, not {hashlib.sha256(BIG).hexdigest()}"),
    ):
        hub = Damaging()
        hub.damage = damage
        with pytest.raises(ValueError, match=rf"data/big.bin of dataset o/set .*{why}"):
            download(public(), tmp_path, hub)
        assert not (tmp_path / "data/big.bin").exists()
    # A copy from elsewhere is taken if it is right, else fetched; so is another revision's.
    shutil.rmtree(tmp_path)
    (tmp_path / "data").mkdir(parents=True)
    (tmp_path / "data/big.bin").write_bytes(BIG)
    (tmp_path / "rows.csv").write_bytes(SMALL.upper())
    hub = FolderHub()
    download(public(), tmp_path, hub)
    assert hub.asked == ["commit", ("rows.csv", 0)]
    # More files of the same commit are fetched beside those that are there.
    download(public(files=("*",)), tmp_path, hub := FolderHub())
    assert hub.asked == ["commit"]
    # Of another revision, only what others have put there stays.
    (tmp_path / "val2017.zip").write_bytes(b"of the user")
    newer = FolderHub({"data/big.bin": BIG, "rows.csv": SMALL + SMALL})
    newer.commit = lambda repository, revision: COMMIT[::-1]
    newer.files = lambda repository, commit: FolderHub.files(newer, repository, COMMIT)
    download(public(revision=COMMIT[::-1]), tmp_path, newer)
    assert newer.asked == [("data/big.bin", 0), ("rows.csv", 0)]
    assert (tmp_path / "rows.csv").read_bytes() == SMALL + SMALL
    assert (tmp_path / "val2017.zip").exists()
    # What would lie outside is refused before anything is written.
    with pytest.raises(ValueError, match=r"'\.\./evil.csv' leads out"):
        download(public(), tmp_path / "new", FolderHub({"data/a": b"", "../evil.csv": b"1"}))
    assert not (tmp_path / "evil.csv").exists()
    with pytest.raises(
        RefusedError, match=r"no file images\.zip; it has 2 files, such as data/big"
    ):
        download(public(files=("images.zip",)), tmp_path / "new", FolderHub())
    # A disk without room is told before anything is fetched.
    usage = shutil.disk_usage(tmp_path)._replace(free=len(BIG) - 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    hub = FolderHub()
    with pytest.raises(RuntimeError, match=r"set needs 0\.0 GB more.*the same command goes on"):
        download(public(), tmp_path / "full", hub)
    assert hub.asked == ["commit"]


class Response:
    """What huggingface_hub's errors are made of."""

    headers: dict = {}
    request = None

    def __init__(self, status):
        self.status_code = status


@for_each(
    "error, expected, says",
    [
        (
            lambda: errors.GatedRepoError("x", response=Response(403)),
            RefusedError,
            "accept its licence, then set HF_TOKEN",
        ),
        (
            lambda: errors.RepositoryNotFoundError("x", response=Response(404)),
            RefusedError,
            "no dataset o/set",
        ),
        (
            lambda: errors.RevisionNotFoundError("x", response=Response(404)),
            RefusedError,
            "no revision abcdefa",
        ),
        (
            lambda: errors.HfHubHTTPError("x", response=Response(400)),
            RefusedError,
            "the hub refuses",
        ),
        (lambda: errors.HfHubHTTPError("x", response=Response(503)), UnreachableError, "o/set"),
        (lambda: errors.HfHubHTTPError("x", response=Response(429)), UnreachableError, "o/set"),
        (lambda: errors.OfflineModeIsEnabled("x"), RefusedError, "HF_HUB_OFFLINE"),
        (lambda: ConnectionResetError(104, "reset"), UnreachableError, "reset"),
        (lambda: OSError(28, "No space left on device"), OSError, "No space left"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(error, expected, says, monkeypatch):
    def fail(*arguments, **keywords):
        raise error()

    monkeypatch.setattr(hf_api.HfApi, "list_repo_commits", fail)
    with pytest.raises(expected, match=says) as caught:
        HuggingFaceHub().commit("o/set", "abcdefa")
    assert type(caught.value) is expected


def test_the_hub_is_asked_in_the_installed_client_s_terms(tmp_path, monkeypatch):
    """Each call is bound to the signature of what it replaces."""
    asked = {}

    def stub(owner, name, result):
        signature = inspect.signature(getattr(owner, name))

        def called(*arguments, **keywords):
            asked[name] = signature.bind(*arguments, **keywords).arguments
            return result

        monkeypatch.setattr(owner, name, called)

    commits = [hf_api.GitCommitInfo(id, [], None, "", "", None, None) for id in (COMMIT, "f" * 40)]
    entry = {"path": "a/b.zip", "size": 7, "oid": "1" * 40}
    lfs = {"lfs": {"oid": "2" * 64, "size": 7, "pointerSize": 130}}
    tree = [
        hf_api.RepoFolder(path="a", oid="0" * 40),
        hf_api.RepoFile(**entry, **lfs),
        hf_api.RepoFile(**entry | {"path": "c.csv"}),
    ]
    stub(hf_api.HfApi, "list_repo_commits", commits)
    stub(hf_api.HfApi, "dataset_info", hf_api.DatasetInfo(id="o/set", sha=COMMIT))
    stub(hf_api.HfApi, "list_repo_tree", tree)
    stub(file_download, "http_get", None)
    hub = HuggingFaceHub()
    assert hub.commit("o/set", COMMIT) == COMMIT and not asked  # full length: nothing to ask
    assert hub.commit("o/set", COMMIT[:8]) == hub.commit("o/set", "main") == COMMIT
    assert hub.commit("o/set", "") == COMMIT and asked["dataset_info"]["revision"] is None
    with pytest.raises(RefusedError, match="0 commits that begin with 1234567, of 2"):
        hub.commit("o/set", "1234567")
    first, second = hub.files("o/set", COMMIT)
    assert asked["list_repo_tree"]["repo_type"] == "dataset"
    assert first == HubFile("a/b.zip", 7, "2" * 64, "1" * 40)
    assert second == HubFile("c.csv", 7, "", "1" * 40)
    with (tmp_path / "part").open("ab+") as target:
        target.write(b"be")
        hub.append("o/set", COMMIT, first, target)
    given = asked["http_get"]
    assert given["temp_file"] is target
    assert given["url"].endswith(f"/datasets/o/set/resolve/{COMMIT}/a/b.zip")
    assert (given["resume_size"], given["expected_size"]) == (2, 7)
    assert huggingface_hub.utils.are_progress_bars_disabled("huggingface_hub.http_get")
    assert hub_module.FULL.fullmatch(COMMIT)
