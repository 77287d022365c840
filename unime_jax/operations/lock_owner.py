"""Owner of a lock: a process by host, boot, namespace, id and start, and whether it still runs."""

import dataclasses
import json
import os
import pathlib
import socket
import time
import uuid


@dataclasses.dataclass(frozen=True)
class Owner:
    """The holder of a lock; `token` is new for each holding, `namespace` that of process ids."""

    host: str
    boot: str
    namespace: str
    pid: int
    began: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def to_text(owner: Owner) -> str:
    """The owner as the content of a lock's file."""
    return json.dumps(dataclasses.asdict(owner), indent=2) + "\n"


def from_text(content: bytes) -> Owner | None:
    """The owner that a lock's file names; None if it cannot be read."""
    try:
        record = json.loads(content)
        owner = Owner(**record)
    except (ValueError, TypeError, RecursionError):
        return None
    return owner if isinstance(owner.pid, int) and isinstance(owner.token, str) else None


def is_here(owner: Owner, mine: Owner) -> bool:
    """True if the owner's process id is of this host, its boot and its namespace."""
    return (owner.host, owner.boot, owner.namespace) == (mine.host, mine.boot, mine.namespace)


def died_here(owner: Owner, mine: Owner) -> bool:
    """True if the owner was a process of this host that has ended."""
    return is_here(owner, mine) and _began(owner.pid) != owner.began


def myself() -> Owner:
    """This process as an owner, with a new token."""
    return Owner(
        host=socket.gethostname(),
        boot=_first_line("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        pid=os.getpid(),
        began=_began(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        token=uuid.uuid4().hex,
    )


def _began(pid: int) -> str:
    """Start of a process, which tells it from a later one of its id; "": there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists():
            return ""
    except (OSError, ValueError):
        return ""
    else:
        return "" if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more
    try:  # without /proc its id has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _first_line(path: str) -> str:
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
