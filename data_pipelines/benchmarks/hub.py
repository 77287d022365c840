"""Datasets on the Hugging Face hub: commits, files with their hashes, and content from any byte.

The only module here that talks to a network; tests hand in another `Hub`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import huggingface_hub
from huggingface_hub import errors, file_download, hf_api

from unime_jax.operations import disk_errors

FULL = re.compile(r"[0-9a-f]{40}")  # a commit
ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")
TRANSIENT = (408, 425, 429)  # of HTTP, beside all of 500 and above


class UnreachableError(ConnectionError):
    """The network, or the hub for now, is in the way: worth another try."""


class RefusedError(ValueError):
    """The hub has not what is asked for, or not for this user; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file of a commit, and what its content must be.

    `sha256` is "" for a small file, which lies in git itself: its `git_hash` is that of its content
    ("blob", size and NUL before it, by SHA-1).
    """

    path: str
    size: int  # bytes
    sha256: str
    git_hash: str


class Hub(Protocol):
    """Datasets by their ids. All methods raise UnreachableError and RefusedError."""

    def commit(self, repository: str, revision: str) -> str:
        """The 40 digits of a commit, of a branch, a tag, or the first digits of a commit."""

    def files(self, repository: str, commit: str) -> Sequence[HubFile]:
        """All files of a commit."""

    def append(self, repository: str, commit: str, file: HubFile, target: BinaryIO) -> None:
        """Writes a file's content from byte `target.tell()` on; a failure keeps what has come."""


class HuggingFaceHub:
    """The hub at HF_ENDPOINT, with HF_TOKEN or the login of `hf auth login`."""

    def commit(self, repository: str, revision: str) -> str:
        if FULL.fullmatch(revision):
            return revision
        api = huggingface_hub.HfApi()
        with _explained(repository, revision):
            if not ABBREVIATED.fullmatch(revision):
                named = api.dataset_info(repository, revision=revision or None).sha
                return str(named)
            known = api.list_repo_commits(repository, repo_type="dataset")
        matching = [c.commit_id for c in known if c.commit_id.startswith(revision)]
        if len(matching) != 1:
            raise RefusedError(
                f"dataset {repository} on the hub has {len(matching)} commits that begin with "
                f"{revision}, of {len(known)} on its main branch; its history may have been "
                "rewritten: the set's revision has to be looked up again"
            )
        return str(matching[0])

    def files(self, repository: str, commit: str) -> Sequence[HubFile]:
        api = huggingface_hub.HfApi()
        with _explained(repository, commit):
            tree = list(
                api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
            )
        return [
            HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
            for entry in tree
            if isinstance(entry, hf_api.RepoFile)
        ]

    def append(self, repository: str, commit: str, file: HubFile, target: BinaryIO) -> None:
        url = huggingface_hub.hf_hub_url(
            repository, file.path, repo_type="dataset", revision=commit
        )
        # hf_hub_download begins a file anew after every failure; this is what it calls itself.
        huggingface_hub.utils.disable_progress_bars("huggingface_hub.http_get")
        with _explained(repository, commit):
            file_download.http_get(
                url,
                target,
                resume_size=target.tell(),
                headers=huggingface_hub.utils.build_hf_headers(),
                expected_size=file.size,
            )


@contextlib.contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Errors of huggingface_hub as the two of this module; a full disk's stays what it is."""
    page = f"https://huggingface.co/datasets/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise RefusedError(
            f"dataset {repository} is gated: log in at {page}, accept its licence, then set "
            "HF_TOKEN to a token of that account (or run `hf auth login`), and start again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RefusedError(f"dataset {repository} has no revision {revision} at {page}") from error
    except errors.RepositoryNotFoundError as error:
        raise RefusedError(
            f"there is no dataset {repository} on the hub, or it is not public: look at {page}; "
            "with access to it, set HF_TOKEN"
        ) from error
    except errors.EntryNotFoundError as error:
        raise RefusedError(f"dataset {repository} lacks a file at {revision}: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise RefusedError(
            "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or name local copies by "
            "--raw"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 500)
        if status in TRANSIENT or status >= 500:
            raise UnreachableError(f"{repository}: {error}") from error
        raise RefusedError(f"the hub refuses {repository} at {revision}: {error}") from error
    except (errors.HTTPError, OSError) as error:  # of the connection, or of the disk
        if disk_errors.trouble_of(error) is not None:
            raise
        raise UnreachableError(f"{repository}: {type(error).__name__}: {error}") from error
