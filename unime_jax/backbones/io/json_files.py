"""Reading and writing of JSON objects in Hugging Face folders."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def read(file: pathlib.Path) -> dict[str, Any]:
    """Content of a JSON file; {} if the file does not exist.

    Raises:
      ValueError: the file is not JSON, or its content is not an object.
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
    """Writes a JSON object, indented, over any existing file."""
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
