"""README and docs name only files, folders and keys that there are; the site has all pages."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import sys
import typing

import pytest
import yaml
from ml_collections import ConfigDict

from tests.tables import for_each
from unime_jax import backbones, config, config_reader
from unime_jax.operations import command_line, config_help, doctor_command, recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PATH = re.compile(r"`((?:unime_jax|experiments|data_pipelines|tests|docs)/[\w/.-]+)`")
RECIPE = re.compile(r"--config=(?:experiments/)?(\w+)(?:\.py)?(?::([\w:]+))?(?=[\s`)])")
KEY = re.compile(r"--config\.([a-z_0-9.]+)=")
COMMAND = re.compile(
    r"(?:python -m unime_jax\.main|launch/\w+\.sh|unime-jax) +([^`\n]*--config=[^`\n]*)"
)
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

    # Whole commands are valid as they stand.
    for command in COMMAND.findall(text.replace("\\\n", " ")):
        if "--config=<" in command:  # the form of a command
            continue
        command = re.sub(r"<[^>]*>|\.\.\.", "name", command.replace("$s", "0"))
        overrides, others = command_line.split(shlex.split(command, comments=True))
        (recipe,) = (word[9:] for word in others if word.startswith("--config="))
        values = recipes.load(recipe)
        asks_doctor, of_doctor, overrides = doctor_command.split(overrides)
        command_line.apply(values, overrides)
        if asks_doctor:
            doctor_command.whole(values, of_doctor, {})
        config_reader.read(config.kind_of(values.to_dict()), values.to_dict())


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


def test_every_key_is_on_the_page_of_keys():
    file = ROOT / "docs" / "config_keys.py"
    spec = importlib.util.spec_from_file_location("config_keys", file)
    config_keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config_keys)
    text = config_keys.with_tables((ROOT / "docs" / config_keys.PAGE).read_text())
    assert "<!-- keys" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and row[2].strip(" |") for row in rows)  # each has a meaning
    shown = {re.match(r"\| `([\w.]+)`", row[0])[1] for row in rows}
    for cls in set(typing.get_args(config.Settings)) - {config.PlansConfig}:
        named = {key for key, _, _ in config_help.described_keys(cls)}
        elsewhere = (*config_help.PARTS, "loss.contrastive.")  # said once, under other names
        assert {key for key in named if not key.startswith(elsewhere)} <= shown, cls


@for_each("page", sorted((ROOT / "docs").glob("add_*.md")))
def test_examples_of_extensions_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known, before, names = dict(backbones.FAMILIES), set(sys.modules), {}
    blocks = re.findall(r"^```python\n(.+?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    try:
        for block in blocks:
            if file := re.match(r"# file: (\S+)\n", block):
                (tmp_path / file[1]).write_text(block)
            else:
                exec(compile(block, str(page), "exec"), names)
    finally:
        backbones.FAMILIES.clear()
        backbones.FAMILIES.update(known)
        for name in [n for n in set(sys.modules) - before if (tmp_path / f"{n}.py").exists()]:
            del sys.modules[name]


def test_quoted_errors_are_said_by_the_source():
    files = [
        file for name in ("unime_jax", "data_pipelines") for file in (ROOT / name).rglob("*.py")
    ]
    source = "\n".join(file.read_text() for file in files)
    said = re.sub(r"""["']\s*\n\s*\+?\s*[fr]*["']""", "", source)  # a text over several lines
    page = (ROOT / "docs" / "errors.md").read_text()
    quotes = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quotes) > 40
    assert not [quote for quote in quotes if any(part not in said for part in quote.split("..."))]


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
