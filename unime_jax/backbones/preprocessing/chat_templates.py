"""Chat template of a folder: precedence of its files, and copies in exports.

transformers 5's processors take the key `chat_template` of processor_config.json, then
chat_template.json, then chat_template.jinja with its namesakes in additional_chat_templates/. Its
tokenizers take the last, then tokenizer_config.json, which in many checkpoints holds the language
model's own template. Here all four are tried in this order.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from absl import logging

from unime_jax.backbones.io import json_files

KEY = "chat_template"
PROCESSOR, LEGACY, TOKENIZER = (
    "processor_config.json",
    "chat_template.json",
    "tokenizer_config.json",
)
JINJA, MORE = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"  # name of the template that is used unless another is asked for

T = TypeVar("T")


class Source(NamedTuple):
    """Templates of a file, by name."""

    file: str
    templates: Mapping[str, str]


def use(folder: pathlib.Path, make: Callable[[str], T]) -> T:
    """Result of `make` for the template that takes precedence.

    Raises:
      ValueError: the folder has no template, or `make` raises it for the one that counts. The
        message says whose template would do.
    """
    sources = _sources(folder)
    if not sources:
        raise ValueError(
            f"{folder} has no chat template: no {JINJA} or {LEGACY}, and no {KEY!r} in {PROCESSOR}"
            f" or {TOKENIZER}; copy the one of the checkpoint it was made from"
        )
    _warn_of_differences(folder, sources)
    first, *others = sources
    try:
        return make(_default(first))
    except ValueError as error:
        usable = [source.file for source in others if _works(make, source)]
        hint = ""
        if usable:
            hint = (
                f". This template counts before that of {usable[0]}, which would do: delete the"
                f" one in {first.file}"
            )
        raise ValueError(f"{folder / first.file}: {error}{hint}") from error


def write(folder: pathlib.Path) -> None:
    """Writes the template that takes precedence to all files of an export that have one.

    It is also written to chat_template.jinja. Templates by other names are left out. Without one
    called "default" no library uses any, and the files stay as they are.
    """
    sources = _sources(folder)
    if not sources or DEFAULT not in sources[0].templates:
        return
    template = sources[0].templates[DEFAULT]
    (folder / JINJA).write_text(template, "utf-8")
    if (folder / LEGACY).exists():
        json_files.write(folder / LEGACY, {KEY: template})
    for file, value in ((PROCESSOR, None), (TOKENIZER, template)):
        content = json_files.read(folder / file)
        if content.pop(KEY, None) is not None:
            json_files.write(folder / file, content | ({KEY: value} if value else {}))


def _sources(folder: pathlib.Path) -> list[Source]:
    """Existing sources of templates; the first takes precedence."""
    jinja = {file.stem: file.read_text("utf-8") for file in sorted((folder / MORE).glob("*.jinja"))}
    if (folder / JINJA).exists():
        jinja[DEFAULT] = (folder / JINJA).read_text("utf-8")
    values = [
        (PROCESSOR, json_files.read(folder / PROCESSOR).get(KEY)),
        (LEGACY, json_files.read(folder / LEGACY).get(KEY)),
        (JINJA if (folder / JINJA).exists() else MORE, jinja),
        (TOKENIZER, json_files.read(folder / TOKENIZER).get(KEY)),
    ]
    return [Source(file, _named(folder / file, value)) for file, value in values if value]


def _named(file: pathlib.Path, value: Any) -> dict[str, str]:
    """Templates by name, of a template, a dict or a list of {"name", "template"}."""
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        named = {x["name"]: x["template"] for x in value} if isinstance(value, list) else value
        if all(isinstance(text, str) for text in named.values()):
            return dict(named)
    except (AttributeError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{file}: {KEY} is {str(value)[:200]!r}; it must be a template, a dict of templates by"
        " name, or a list of {'name': ..., 'template': ...}"
    )


def _default(source: Source) -> str:
    if DEFAULT not in source.templates:
        names = ", ".join(map(repr, source.templates))
        raise ValueError(f"its chat templates are {names}, and none is {DEFAULT!r}: rename one")
    return source.templates[DEFAULT]


def _works(make: Callable[[str], Any], source: Source) -> bool:
    if DEFAULT not in source.templates:
        return False
    try:
        make(source.templates[DEFAULT])
    except ValueError:
        return False
    return True


def _warn_of_differences(folder: pathlib.Path, sources: list[Source]) -> None:
    """The tokenizer's template usually is another one, which is no sign of a mistake."""
    first, *others = [source for source in sources if source.file != TOKENIZER] or sources[:1]
    differing = [
        source.file
        for source in others
        if source.templates.get(DEFAULT) != first.templates.get(DEFAULT)
    ]
    if differing:
        logging.warning(
            "%s: the chat templates of %s and %s differ; that of %s counts, as in transformers'"
            " processors. Delete the wrong one.",
            folder,
            first.file,
            " and ".join(differing),
            first.file,
        )
