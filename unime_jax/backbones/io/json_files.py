"""Reading and writing of JSON objects in Hugging Face folders."""

import json
from collections.abc import Mapping
from typing import Any

from unime_jax import files


def read(file: files.Path) -> dict[str, Any]:
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


def write(file: files.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented, over any existing file."""
    files.write_whole(file, json.dumps(content, indent=2) + "\n")
