"""A dictionary of files in the hub's place, and a public set of them."""

import hashlib
import zipfile

from data_pipelines.benchmarks.hub import HubFile, UnreachableError
from data_pipelines.benchmarks.public_set import PublicSet

COMMIT = "0123456789" * 4
BIG = bytes(range(256)) * 40
SMALL = b"id,text\n1,one\n"


class FolderHub:
    """A dictionary of files in the hub's place, and what it was asked for, from which byte."""

    def __init__(self, content=None, cuts=()):
        self.content = {"data/big.bin": BIG, "rows.csv": SMALL} if content is None else content
        self.cuts = list(cuts)  # bytes after which the connection breaks, once each; 0: at once
        self.asked = []

    def commit(self, repository, revision):
        self.asked.append("commit")
        return COMMIT

    def files(self, repository, commit):
        assert commit == COMMIT
        return [
            HubFile(name, len(data), hashlib.sha256(data).hexdigest(), "")
            if name.endswith(".bin")
            else HubFile(
                name, len(data), "", hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            )
            for name, data in self.content.items()
        ]

    def append(self, repository, commit, file, target):
        self.asked.append((file.path, target.tell()))
        data = self.send(file.path)[target.tell() :]
        if self.cuts:
            target.write(data[: self.cuts.pop(0)])
            raise UnreachableError("the connection was reset")
        target.write(data)

    def send(self, path):
        return self.content[path]


def public(**changes):
    values = {"name": "set", "kind": "captions", "repository": "o/set", "revision": "0123456"}
    values |= {"files": ("data/*", "*.csv"), "archives": (), "counts": {}, "read": None}
    return PublicSet(**values | changes)


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
