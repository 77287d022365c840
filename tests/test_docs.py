"""README and docs name only files, folders and config keys that there are."""

import importlib
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from unime_jax.operations import recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PATH = re.compile(r"`((?:unime_jax|experiments|data_pipelines|tests|docs)/[\w/.-]+)`")
RECIPE = re.compile(r"--config=(?:experiments/)?(\w+)(?:\.py)?(?::([\w:]+))?(?=[\s`)])")
KEY = re.compile(r"--config\.([a-z_0-9.]+)=")
NAMED_BY_USERS = ("data.weights", "export.prompts")  # the keys below these


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every config key of every recipe, groups too."""
    configs = map(recipes.load, [*recipes.names(), "plan:stage2"])
    return {key for config in configs for key in _keys(config)}


def _keys(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_and_recipes_are_there(page, keys):
    text = page.read_text()
    named = {key for key in KEY.findall(text) if key.rpartition(".")[0] not in NAMED_BY_USERS}
    assert named <= keys
    for recipe, variant in RECIPE.findall(text):
        if recipe == "mine":  # the reader's own
            continue
        module = importlib.import_module(f"experiments.{recipe}")
        module.get_config(*([variant] if variant else []))
