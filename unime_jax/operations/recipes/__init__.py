"""The recipes: whole configs by name. In a clone they are files of experiments/.

An installed package has a copy of them in this folder (setup.py puts it here), so that
`from unime_jax.operations.recipes import stage2` is the same recipe in both.
"""

import ast
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from unime_jax.config_reader import nearest

_HERE = pathlib.Path(__file__).parent
_INSTALLED = (_HERE / "stage2.py").exists()
FOLDER = _HERE if _INSTALLED else _HERE.parents[2] / "experiments"

__path__ = [str(FOLDER)]


def names() -> list[str]:
    """Names of the recipes that come with this package: files that have get_config."""
    files = FOLDER.glob("[!_]*.py")
    return sorted(file.stem for file in files if "\ndef get_config(" in file.read_text())


def name_of(recipe: str) -> str:
    """The name of a recipe's file: "stage2" for "experiments/stage2.py:qwen2_vl_7b"."""
    return pathlib.PurePath(_split(recipe)[0]).stem


def short(recipe: str) -> str:
    """A recipe of this package by name, also if it is given as a file; others as they are."""
    source, variant = _split(recipe)
    name = pathlib.PurePath(source).stem
    if not source.endswith(".py") or not _is_ours(pathlib.Path(source)):
        return recipe
    return f"{name}:{variant}" if variant else name


def load(recipe: str) -> ConfigDict:
    """The config that a recipe stands for: "stage2", "stage2:qwen2_vl_7b" or "folder/file.py:x".

    A name is a recipe of this package; what ends in .py is a file with `get_config(variant)`, or
    `get_config()` if there are no variants.

    Raises:
      ValueError: there is no such recipe, variant or file; the message names those that there are.
    """
    source, variant = _split(recipe)
    module = _from_file(pathlib.Path(source)) if source.endswith(".py") else _by_name(source)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={recipe}: {source} has no function get_config")
    try:
        config = module.get_config(*([variant] if variant else []))
    except KeyError as error:
        raise ValueError(f"--config={recipe}: {error.args[0]}") from error
    return config.lock() if isinstance(config, ConfigDict) else ConfigDict(config).lock()


def described() -> Mapping[str, tuple[str, Mapping[str, str]]]:
    """Summaries of every recipe and of its variants, by name; "" is the variant without a name.

    They are read from the docstrings of the files, without running them.
    """
    summaries = {}
    for name in names():
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
        lines = re.findall(rf"--config=experiments/{name}\.py(?::([\w:]+))?  +(.+)", text)
        summaries[name] = text.splitlines()[0], dict(lines)
    return summaries


def _split(recipe: str) -> tuple[str, str]:
    """Name or file, and variant, which may be a recipe itself: "plan:folder/mine.py:x"."""
    parts = re.fullmatch(r"(?P<source>[^:/]*[^:/.]|.*?\.py)(?::(?P<variant>.*))?", recipe)
    return (parts["source"], parts["variant"] or "") if parts else (recipe, "")


def _is_ours(file: pathlib.Path) -> bool:
    return file.resolve().parent == FOLDER.resolve() and file.stem in names()


def _by_name(name: str) -> Any:
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    near = nearest(name, names())
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"--config={name}: there is no such recipe; {hint}There are {', '.join(names())}, and "
        "files of your own: --config=<folder>/<file>.py"
    )


def _from_file(file: pathlib.Path) -> Any:
    if not file.is_file():
        packaged = file.stem in names()
        raise ValueError(
            f"--config={file}: there is no such file"
            + (f"; the recipe of this package is --config={file.stem}" if packaged else "")
        )
    if _is_ours(file):
        return _by_name(file.stem)
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
