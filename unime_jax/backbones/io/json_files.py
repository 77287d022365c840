"""JSON files of Hugging Face folders, each an object."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def read(file: pathlib.Path) -> dict[str, Any]:
    """A file's content; {} where there is none.

    Raises:
      ValueError: it is not a JSON object.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must be a JSON object")
    return content


def write(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Replaces the file."""
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
