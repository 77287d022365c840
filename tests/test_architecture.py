"""The house: nine files and fourteen packages at the top, and which of them may import which."""

import ast
import functools
import graphlib
import pathlib

import unime_jax
from tests.tables import for_each
from unime_jax.evaluation.encoding import vector_cache

PACKAGE = pathlib.Path(unime_jax.__file__).parent
FILES = {
    "__init__", "main", "config_reader", "embedder", "index", "batch", "paths",
    "sharding", "files",
}  # fmt: skip
PACKAGES = {
    "jobs", "training", "losses", "models", "backbones", "data", "evaluation", "export",
    "planning", "operations", "integrations", "config", "inference", "serve",
}  # fmt: skip
WEB = {"starlette", "uvicorn", "fastapi", "gradio"}
# What a package may import of this one beside itself.
BELOW = {
    "losses": {"sharding"},
    "models": {"batch", "paths", "sharding"},
    "operations": {"files", "config", "config_reader", "sharding"},
    "data": {"batch", "files", "operations", "sharding"},
    "backbones": {"batch", "files", "operations", "data", "models"},
}


# Packages and files that training is built on, or that can do without it.
WITHOUT_TRAINING = (
    "inference", "embedder", "evaluation", "export", "backbones", "data", "operations",
    "integrations", "serve",
)  # fmt: skip
# Of what an Embedder imports: files, settings, and where arrays lie.
MAKE_NO_VECTOR = {"config", "files", "operations", "sharding", "training"}
SETTINGS = {"training.settings", "training.loss_settings"}  # plain data, which config imports


@functools.cache
def import_statements(file: pathlib.Path) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """A module's imports: those at its top level, and all."""
    tree = ast.parse(file.read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [node for node in found if node in tree.body], found


@functools.cache
def imported(file: pathlib.Path) -> set[str]:
    """The packages and top-level modules that a module imports of this package."""
    names = set()
    for node in import_statements(file)[1]:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unime_jax":
            _, *below = (node.module or "").split(".")
            names |= {below[0]} if below else {alias.name for alias in node.names}
    return names - {"__version__"}


def test_nine_files_and_fourteen_packages():
    assert {file.stem for file in PACKAGE.glob("*.py")} == FILES
    assert {init.parent.name for init in PACKAGE.glob("*/__init__.py")} == PACKAGES


@for_each("package", sorted(PACKAGES - {"jobs"}))
def test_no_package_imports_jobs(package):
    for file in (PACKAGE / package).rglob("*.py"):
        assert "jobs" not in imported(file), file


def test_only_a_job_imports_integrations_and_only_where_it_is_asked_to():
    # Nor does anything else import their libraries.
    for file in PACKAGE.rglob("*.py"):
        tops, nodes = import_statements(file)
        if file.is_relative_to(PACKAGE / "integrations"):
            continue
        of_integrations = "integrations" in imported(file)
        assert not of_integrations or file == PACKAGE / "jobs" / "evaluated_model.py", file
        tops = [n for n in tops if isinstance(n, ast.ImportFrom)]
        assert not any("integrations" in (node.module or "") for node in tops), file
        names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        libraries = {name.split(".")[0] for name in names}
        assert not libraries & {"mteb", "sentence_transformers"}, file
        assert not libraries & WEB or file.is_relative_to(PACKAGE / "serve"), file
        assert "serve" not in imported(file) or file.is_relative_to(PACKAGE / "serve"), file


@for_each("package", BELOW)
def test_arrows_point_down(package):
    for file in (PACKAGE / package).rglob("*.py"):
        assert imported(file) <= BELOW[package] | {package}, file


def modules() -> dict[str, pathlib.Path]:
    """Files of the package by dotted name, without "unime_jax."."""
    files = {file.relative_to(PACKAGE).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, wherever in its file."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, file in known.items():
        nodes = [n for n in import_statements(file)[1] if isinstance(n, ast.ImportFrom)]
        own = [node for node in nodes if (node.module or "").split(".")[0] == "unime_jax"]
        below = [((node.module or "").removeprefix("unime_jax").lstrip("."), node) for node in own]
        named = {f"{base}.{alias.name}".lstrip(".") for base, n in below for alias in n.names}
        edges[name] = (named | {base for base, _ in below}) & known.keys()
    return edges


def reached(start: str) -> set[str]:
    """A module, and all that it imports by any way."""
    edges, seen, waiting = imports(), {start}, [start]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_no_packages_import_each_other_by_any_way():
    # No packages import each other by any way. Packages and files of the top level; settings are
    # plain data that config gathers.
    graph: dict[str, set[str]] = {}
    for name, targets in imports().items():
        package = name.split(".")[0]
        plain = {t for t in targets if t.endswith(".settings")} | SETTINGS
        others = {t.split(".")[0] for t in targets - plain} - {"__init__"}
        graph.setdefault(package, set()).update(others - {package})
    graph.pop("__init__")  # which gives Embedder on demand
    of_config = [ts for name, ts in imports().items() if name.split(".")[0] == "config"]
    outside = {t for ts in of_config for t in ts if t.split(".")[0] != "config"}
    assert outside == {"data.settings", "models.settings", *SETTINGS}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names a cycle
    assert order.index("losses") < order.index("training") < order.index("jobs")
    assert order.index("evaluation") < order.index("training") < order.index("planning")

    # What training is built on never comes to training by any way.
    for start in imports():
        if start.split(".")[0] not in WITHOUT_TRAINING:
            continue
        training = {name for name in reached(start) if name.startswith("training.")} - SETTINGS
        assert not training, f"{start} imports {sorted(training)}"

    # Vectors that are kept are forgotten with any code that makes them.
    makers = {name.split(".")[0] for name in reached("inference.opened_model")} - MAKE_NO_VECTOR
    assert makers <= {name.removesuffix(".py") for name in vector_cache.CODE}
