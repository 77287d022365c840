"""Growing files: a local one is appended to at once, one of a bucket is sent as a whole."""

import contextlib
import os
import pathlib
import tempfile
import time

from unime_jax import files

SECONDS_BETWEEN_UPLOADS = 30.0


class GrowingFile:
    """A text file that only grows, such as metrics.jsonl.

    A local one is appended to at once. One of a bucket is sent as a whole, at most every
    `SECONDS_BETWEEN_UPLOADS` and at `sync`: a kill loses the lines since then.
    """

    def __init__(self, path: files.Path):
        self._path = path
        self._sent = time.monotonic()
        self._content = bytearray()
        self._file = None
        if isinstance(path, pathlib.Path):
            self._file = path.open("a", encoding="utf-8")
        else:
            with contextlib.suppress(FileNotFoundError):
                self._content += path.read_bytes()

    def write(self, text: str) -> None:
        """Appends, for other processes to read."""
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
            return
        self._content += text.encode()
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_UPLOADS:
            self.sync()

    def sync(self) -> None:
        """Returns when all that was written would outlive this machine."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        else:
            files.write_whole(self._path, self._content)
            self._sent = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self.sync()


class GrowingFolder:
    """A folder of files that other libraries append to: `local` is where they write.

    Of a folder in a bucket that is a temporary one, sent as a whole, as a `GrowingFile` is.
    """

    def __init__(self, folder: files.Path):
        self._folder = folder
        self._sent = time.monotonic()
        if isinstance(folder, pathlib.Path):
            self.local = folder
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="unime_jax-")
            self.local = pathlib.Path(self._scratch.name)

    def changed(self) -> None:
        """Sends it, if it was not sent for a while."""
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_UPLOADS:
            self.sync()

    def sync(self) -> None:
        """Sends the whole folder to the bucket; nothing to do for a local one."""
        if not isinstance(self._folder, pathlib.Path):
            files.upload(self.local, self._folder)
            self._sent = time.monotonic()
