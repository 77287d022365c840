"""The page of all config keys: made of the dataclasses and recipes when the site is built.

A hook of mkdocs (mkdocs.yml). A line of keys.md

    <!-- keys: <class> [of <group>] [without <group>[,<group>]]: <recipe> ... -->

becomes tables of the keys of that dataclass of `unime_jax.config`, with their values in recipes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from unime_jax import config, config_reader
from unime_jax.operations import config_help, doctor_command, recipes

PAGE = "keys.md"
_MARK = re.compile(r"^<!-- keys: (\w+)(?: of (\S+))?(?: without (\S+))?: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The markdown of a page, with tables in the place of the marks."""
    return with_tables(markdown) if page.file.src_uri == PAGE else markdown


def with_tables(markdown: str) -> str:
    """Text with the tables of all its marks."""

    def of_mark(mark: re.Match[str]) -> str:
        without = tuple((mark[3] or "").split(",")) if mark[3] else ()
        return tables(mark[1], f"{mark[2]}." if mark[2] else "", without, mark[4].split())

    return _MARK.sub(of_mark, markdown)


def tables(class_name: str, prefix: str, without: Sequence[str], names: Sequence[str]) -> str:
    """Markdown tables of a dataclass's keys, one a group: key, type, values in recipes, meaning.

    Args:
      class_name: of `unime_jax.config`.
      prefix: of the keys, where the dataclass is a group of a config; with its dot.
      without: groups that are left out.
      names: recipes, such as stage2:llava_onevision_7b. The first one's value is shown, and those
        of the others that differ from it. "doctor" is job doctor with the default recipe.
    """
    values = {name: _flat(_values_of(name).to_dict()) for name in names}
    rows: dict[str, list[str]] = {}
    for key, hint, meaning in config_help.described_keys(getattr(config, class_name)):
        above = (prefix + key).rpartition(".")[0]
        if key.startswith(config_help.PARTS) or above.startswith(tuple(without) or "\n"):
            continue
        what = f"`{prefix}{key}`<br>{_type(config_reader.type_name(hint))}"
        cells = what, _values(prefix + key, values), meaning
        rows.setdefault(above, []).append(" | ".join(cell.replace("\n", " ") for cell in cells))
    parts = []
    for above, lines in rows.items():
        parts += [f"### `{above}.*` {{#{class_name.lower()}-{above.replace('.', '-')}}}"] * bool(
            above
        )
        head = ["| Key, type | Value | Meaning |", "|---|---|---|"]
        parts.append("\n".join([*head, *(f"| {line} |" for line in lines)]))
    return "\n\n".join(parts)


def _values_of(name: str) -> ConfigDict:
    if name == "doctor":
        return doctor_command.whole(recipes.load("stage2"), [], {})
    return recipes.load(name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, groups among them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat[prefix + name] = value
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
    return flat


def _values(key: str, of_recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """The first recipe's value, and those that differ from it, each after its recipe's name."""
    texts = {name: _text(values[key]) for name, values in of_recipes.items() if key in values}
    if not texts:
        return "the group is None"
    (_, first), *others = texts.items()
    return "<br>".join([first, *(f"{name}: {text}" for name, text in others if text != first)])


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(f"`{name}`" for name in value)
    return f"`{value!r}`" if value != "" else '`""`'


def _type(name: str) -> str:
    return name.replace("'", '"').replace("|", "\\|")
