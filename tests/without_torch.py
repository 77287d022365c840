"""Hides torch for the rest of a process: imported before libraries that would import it.

Jobs need it only to evaluate a model by another library. Importing it takes seconds: transformers
and tensorboardX do, wherever it is installed.
"""

import importlib.util
import sys


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _find_spec(name: str, package: str | None = None):
    return None if name == "torch" else _FIND_SPEC(name, package)


_FIND_SPEC = importlib.util.find_spec
importlib.util.find_spec = _find_spec  # asked by transformers; the finder is by an `import`
sys.meta_path.insert(0, _Finder)
