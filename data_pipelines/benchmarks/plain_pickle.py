"""Pickles of plain values (dicts, lists, texts, numbers), read without running what is in them."""

import pickle
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """The value of a pickle that names no class or function: nothing of it is called.

    Raises:
      ValueError: it names one, or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _Plain(file, encoding="utf-8", errors="replace").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from error
        except Exception as error:  # damaged ones raise whatever the machine meets
            raise ValueError(f"{path} is no pickle, or damaged: {error!r}") from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"a pickle that names {module}.{name} may run any code, and is not read; write it as "
            "JSON"
        )
