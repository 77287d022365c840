"""Paths that repositories and archives name, below a folder that they must not leave."""

import pathlib
import re

_DRIVE = re.compile(r"[A-Za-z]:")


def below(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file below `folder`, by its name with `/` between folders.

    Raises:
      ValueError: it would lie elsewhere: the name is absolute or empty, or has `..` in it.
    """
    parts = pathlib.PurePosixPath(name).parts
    leaves = ".." in re.split(r"[/\\]", name) or "\0" in name
    if not parts or leaves or name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise ValueError(f"the path {name!r} leads out of its folder, or nowhere")
    return folder.joinpath(*parts)
