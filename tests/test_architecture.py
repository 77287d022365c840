"""The house: ten files and ten packages at the top, and which of them may import which."""

import ast
import pathlib

import pytest

import unime_jax

PACKAGE = pathlib.Path(unime_jax.__file__).parent
FILES = {
    "__init__", "main", "config", "config_reader", "embedder", "batch", "encode", "paths",
    "sharding", "files",
}  # fmt: skip
PACKAGES = {
    "jobs", "training", "losses", "models", "backbones", "data", "evaluation", "export",
    "planning", "operations",
}  # fmt: skip
# What a package may import of this one beside itself.
BELOW = {
    "losses": {"sharding"},
    "models": {"batch", "paths", "sharding"},
    "operations": {"files", "config", "config_reader", "sharding"},
    "data": {"batch", "files", "operations", "sharding"},
    "backbones": {"batch", "files", "operations", "data", "models"},
}


def imported(file: pathlib.Path) -> set[str]:
    """The packages and top-level modules that a module imports of this package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unime_jax":
            _, *below = (node.module or "").split(".")
            names |= {below[0]} if below else {alias.name for alias in node.names}
    return names - {"__version__"}


def test_ten_files_and_ten_packages():
    assert {file.stem for file in PACKAGE.glob("*.py")} == FILES
    assert {init.parent.name for init in PACKAGE.glob("*/__init__.py")} == PACKAGES


@pytest.mark.parametrize("package", sorted(PACKAGES - {"jobs"}))
def test_no_package_imports_jobs(package):
    for file in (PACKAGE / package).rglob("*.py"):
        assert "jobs" not in imported(file), file


@pytest.mark.parametrize("package", BELOW)
def test_arrows_point_down(package):
    for file in (PACKAGE / package).rglob("*.py"):
        assert imported(file) <= BELOW[package] | {package}, file
