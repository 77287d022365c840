"""README and docs name only files, folders and keys that there are; the site has all pages."""

import importlib
import pathlib
import re

import pytest
import yaml
from ml_collections import ConfigDict

from tests.tables import for_each
from unime_jax.operations import recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PATH = re.compile(r"`((?:unime_jax|experiments|data_pipelines|tests|docs)/[\w/.-]+)`")
RECIPE = re.compile(r"--config=(?:experiments/)?(\w+)(?:\.py)?(?::([\w:]+))?(?=[\s`)])")
KEY = re.compile(r"--config\.([a-z_0-9.]+)=")
NAMED_BY_USERS = ("data.weights", "data.columns", "export.prompts")  # the keys below these


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every config key of every recipe, groups too."""
    configs = [*map(recipes.load, [*recipes.names(), "plan:stage2"])]
    configs.append(ConfigDict({"doctor": importlib.import_module("experiments.base").doctor()}))
    return {key for config in configs for key in _keys(config)}


def _keys(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


@for_each("page", PAGES)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


@for_each("page", PAGES)
def test_keys_and_recipes_are_there(page, keys):
    text = page.read_text()
    named = {key for key in KEY.findall(text) if key.rpartition(".")[0] not in NAMED_BY_USERS}
    assert named <= keys
    for recipe, variant in RECIPE.findall(text):
        if recipe == "mine":  # the reader's own
            continue
        module = importlib.import_module(f"experiments.{recipe}")
        module.get_config(*([variant] if variant else []))


def test_pages_packages_and_modules_are_where_the_docs_say():
    # Every page is in the map of the site.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_leaves(nav)) == sorted(page.name for page in PAGES[1:])

    # Every package of the architecture is there and every module it names.
    named = _tree((ROOT / "docs" / "architecture.md").read_text())
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing
    package = ROOT / "unime_jax"
    packages = {str(file.parent.relative_to(ROOT)) for file in package.rglob("*/__init__.py")}
    top = {str(file.relative_to(ROOT)) for file in package.glob("[!_]*.py")}
    assert packages | top <= named

    # The way of an example takes five files and a sentence for each.
    text = (ROOT / "docs" / "architecture.md").read_text()
    way = text.split("\n## ")[1].split("\n\nAround")[0]
    _, *steps = re.split(r"^\d\. ", way, flags=re.MULTILINE)
    assert len(steps) == 5
    for step in steps:
        path, function, sentence = re.match(r"`(\S+\.py)`, `(\w+)`: (.+)", step, re.DOTALL).groups()
        assert f"\ndef {function}(" in (ROOT / path).read_text(), (path, function)
        assert len(re.findall(r"\.(?:\s|$)", sentence)) == 1, path


def _leaves(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in _leaves(entry)]


def _tree(text: str) -> set[str]:
    """Paths of the indented tree: folders at the beginning of lines, modules after them."""
    tree = re.search(r"^## The tree\n\n((?:    .+\n)+)", text, re.MULTILINE)[1]
    named, folders = set(), {}
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        if entry := re.match(r" {4,8}([\w.]+)(/?)(?: |$)", line):
            above = [folder for at, folder in sorted(folders.items()) if at < depth]
            named.add("/".join([*above, entry[1]]))
            if entry[2]:
                folders = {at: folder for at, folder in folders.items() if at < depth}
                folders[depth] = entry[1]
        modules = re.findall(r"(?<![\w/])\w+\.py\b", line[8:] if entry else line)
        within = "/".join(folder for _, folder in sorted(folders.items()))
        if not (entry and not entry[2]):
            named |= {f"{within}/{module}" for module in modules}
    return named
