"""unime_jax.main, noting what one process reads and writes.

`record` leaves <folder>/<process>.json: "rows", the (source, row) that were begun to be read, in
order, and "written", the files that Python made, opened for writing, renamed or removed.
"""

import json
import os
import pathlib
import sys
import threading

import jax

from unime_jax.data import loader
from unime_jax.operations import processes

EVENTS = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}


def record(folder: pathlib.Path) -> None:
    rows: list[tuple[str, int]] = []
    written: set[str] = set()
    lock = threading.Lock()
    read_example, leave = loader.read_example, processes.leave

    def read_and_note(sources, pick, **options):
        with lock:
            rows.append((pick.source, pick.row))
        return read_example(sources, pick, **options)

    def note(event: str, arguments: tuple) -> None:
        if event in EVENTS:
            written.add(str(arguments[EVENTS[event]]))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = arguments
            writes = (os.O_WRONLY | os.O_RDWR | os.O_CREAT) & flags
            if writes or (mode and set(mode) & set("wax+")):
                written.add(os.fsdecode(path))

    def write_and_leave():
        found = {"rows": rows, "written": sorted(written)}
        (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
        leave()

    loader.read_example = read_and_note
    processes.leave = write_and_leave
    sys.addaudithook(note)
