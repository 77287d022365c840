"""Folders of models: found on this machine, copied from a bucket, or downloaded from the hub."""

import functools
import pathlib
import re

from huggingface_hub import snapshot_download

from unime_jax import files
from unime_jax.backbones.io import merging
from unime_jax.backbones.preprocessing.processing import read_record
from unime_jax.operations import local_copies

HUB_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model")
WEIGHTS = ("*.safetensors",)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def find(
    folder_or_hub_id: str, revision: str | None, token: str | None, *, weights: bool
) -> tuple[pathlib.Path, str]:
    """The folder, and what others can find it by.

    Args:
      revision, token: of the hub, see `backbones.open_backbone`.
      weights: whether to fetch them, too, of what is not on this machine.

    Raises:
      ValueError: there is none, it cannot be fetched, or a revision is asked for of what has none.
    """
    folder = files.as_path(folder_or_hub_id)
    if files.is_remote(folder):
        return _copied(folder, revision, weights=weights), str(folder)
    if not folder.is_dir():
        return download(folder_or_hub_id, revision, token, weights), folder_or_hub_id
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, but {folder} is a folder here, of which there is one: leave"
            " the revision out, or give the id of a repository on the Hugging Face hub"
        )
    return folder, str(folder.resolve())


def _copied(folder: files.Path, revision: str | None, *, weights: bool) -> pathlib.Path:
    """A local copy of a folder in a bucket; without weights, of all but them."""
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {folder} has no revisions: leave it out")
    if (folder / "hf" / "config.json").exists():
        raise ValueError(f"{folder} is the work directory of a run; open {folder / 'hf'}.")
    wanted = [*HUB_FILES, *(WEIGHTS if weights else ())]
    try:
        return local_copies.local_copy(folder, patterns=wanted)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no files of a Hugging Face model: {wanted}") from error


def commits(folder: pathlib.Path, found_by: str) -> dict[str, str]:
    """Commits of hub repositories that a folder came from, by their ids.

    A download lies in a folder of the cache that is called as its commit.
    """
    if found_by == str(folder.resolve()) or files.is_remote(found_by):
        record = read_record(folder)
        return dict(record.commits) if record else {}
    return {found_by: folder.name} if _COMMIT.fullmatch(folder.name) else {}


def check(folder: pathlib.Path) -> None:
    """Raises ValueError if it is no model, and says what it is if that is a run's."""
    if (folder / "hf" / "config.json").exists():
        raise ValueError(
            f"{folder} is the work directory of a run; the model that it exported is in "
            f"{folder / 'hf'}: open that."
        )
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"{folder} is the work directory of a run that has no exported model yet. Let the run "
            f"finish, or export its newest checkpoint with --config.job=export; then open "
            f"{folder / 'hf'}."
        )
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")


def base_of(adapter: pathlib.Path, token: str | None, *, weights: bool) -> tuple[pathlib.Path, str]:
    """The folder of the base that a PEFT adapter names, as `find` has it.

    Raises:
      ValueError: no base is named, it cannot be had, or it is an adapter itself.
    """
    config = merging.read_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{adapter / merging.CONFIG}: base_model_name_or_path is missing.")
    beside = adapter / name
    where = str(beside) if beside.is_dir() else name
    # PEFT, too, has a use for it on the hub only.
    revision = None if pathlib.Path(where).expanduser().is_dir() else config.get("revision")
    try:
        folder, base = find(where, revision, token, weights=weights)
    except ValueError as error:
        raise ValueError(f"{adapter / merging.CONFIG} names its base: {error}") from error
    if (folder / merging.CONFIG).exists():
        raise ValueError(
            f"The base of the adapter {adapter} is itself an adapter, {folder}: merge that one "
            "first (config.job=export with config.steps=0 writes it merged)."
        )
    return folder, base


@functools.cache
def download(hub_id: str, revision: str | None, token: str | None, weights: bool) -> pathlib.Path:
    """The hub's cache of a repository, asked for once a process."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", hub_id):
        raise ValueError(
            f'"{hub_id}" is not a local folder: there is none of this name, and a hub id has the '
            "form <owner>/<name>."
        )
    try:
        wanted = [*HUB_FILES, *(WEIGHTS if weights else ())]
        return pathlib.Path(
            snapshot_download(hub_id, revision=revision, token=token, allow_patterns=wanted)
        )
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f'"{hub_id}" is not a local folder, and it cannot be downloaded from the Hugging Face '
            f"hub{at}: {error}"
        ) from error
