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
    """The recipes that come with this package."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


def name_of(recipe: str) -> str:
    """What a recipe is called: of "experiments/stage2.py:qwen2_vl_7b" it is "stage2"."""
    return pathlib.PurePath(_split(recipe)[0]).stem


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
    """For every recipe what it is, and what each of its variants is; "" is that without a name.

    This is read from the first lines of the files, which nothing is run for.
    """
    found = {}
    for name in names():
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
        lines = re.findall(rf"--config=experiments/{name}\.py(?::(\w+))?  +(.+)", text)
        found[name] = text.splitlines()[0], dict(lines)
    return found


def _split(recipe: str) -> tuple[str, str]:
    source, _, variant = recipe.partition(".py:") if ".py:" in recipe else recipe.partition(":")
    return (f"{source}.py" if ".py:" in recipe else source), variant


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
    if file.resolve().parent == FOLDER.resolve() and file.stem in names():
        return _by_name(file.stem)
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
