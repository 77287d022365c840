"""The texts of --help and --print_config: jobs, recipes and keys, each from its definition."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import io
import pathlib
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from unime_jax import config, config_reader
from unime_jax.operations import recipes

WIDTH = 100
PARTS = ("run.", "command.", "initial.", "mine.", "judge.", "train.")  # whole configs in others


def help_text(jobs: Mapping[str, str], own_flags: list[flags.Flag]) -> str:
    """All of --help.

    Args:
      jobs: name -> a module whose docstring says in its first line what it does.
      own_flags: the flags besides --config.<key>.
    """
    lines = [
        "unime-jax --config=<recipe>[:variant] [--config.<key>=<value> ...] [--workdir=<folder>]",
        "",
        "For example: unime-jax --config=stage2:qwen2_vl_7b --config.data.folder=/data"
        " --config.steps=12",
        "",
        "JOBS  (--config.job; a recipe has the one that it is for)",
    ]
    for name, module in jobs.items():
        lines += _entry(name, _summary(module))
    lines += ["", "RECIPES  (a name of these, or a file of your own that ends in .py)"]
    for name, (summary, variants) in recipes.described().items():
        lines += _entry(name, summary)
        for variant, what in variants.items():
            lines += _entry(f"  {name}:{variant}" if variant else f"  {name}", what)
    lines += ["", "FLAGS"]
    for flag in own_flags:
        lines += _entry(f"--{flag.name}", flag.help or "")
    for cls, title in (
        (config.TrainConfig, "KEYS OF TRAINING AND EXPORT"),
        (config.EmbedConfig, "KEYS OF EMBEDDING"),
        (config.MineConfig, "KEYS OF MINING NEGATIVES"),
        (config.JudgeConfig, "KEYS OF JUDGING CANDIDATES"),
        (config.EvaluateConfig, "KEYS OF EVALUATION APART FROM TRAINING"),
        (config.MergeConfig, "KEYS OF MERGING"),
        (config.DoctorConfig, "KEYS OF THE DOCTOR, BESIDE THOSE OF THE RUN, WITH job=doctor"),
        (config.BenchmarkConfig, "KEYS OF A BENCHMARK"),
        (config.BenchmarkCase, "KEYS OF A CASE, BELOW cases.<name>, AND BELOW run THOSE OF A RUN"),
        (config.PlanConfig, "KEYS OF A PLAN, AND BELOW run THOSE OF THE RUN"),
        (
            config.RoundsConfig,
            "KEYS OF ROUNDS, AND BELOW initial, mine, judge, train THOSE OF THE PARTS",
        ),
    ):
        lines += ["", f"{title}  (--config.<key>=<value>)"]
        for key, hint, meaning in described_keys(cls):
            if not key.startswith(PARTS):
                lines += _entry(f"{key}: {config_reader.type_name(hint)}", meaning)
    return "\n".join(lines) + "\n"


def config_text(values: ConfigDict, headline: str) -> str:
    """A whole config as lines `config.key = value`, each with what the key means.

    Raises:
      ValueError: the config is not valid.
    """
    plain = values.to_dict()
    cls = config.kind_of(plain)
    config_reader.read(cls, plain)
    if cls is config.DoctorConfig:  # whose flags are the run's, and its own beside them
        own = _assignments(plain["doctor"], config.DoctorOptions, "doctor.")
        lines = [*_assignments(plain["run"], config.kind_of(plain["run"])), *own]
        return "\n".join([f"# {headline}", *lines]) + "\n"
    return "\n".join([f"# {headline}", *_assignments(plain, cls)]) + "\n"


def described_keys(cls: type) -> Iterator[tuple[str, Any, str]]:
    """Dotted key, type and meaning of every key of a config's dataclass; of alternatives all."""
    seen = set()
    for path, owner, name in _fields(cls, ""):
        if path not in seen:
            seen.add(path)
            yield path, typing.get_type_hints(owner)[name], meanings(owner).get(name, "")


@functools.cache
def meanings(cls: type) -> dict[str, str]:
    """The meaning of each field of a dataclass, from its source.

    That is the comment beside the field and those directly above it, or else the field's entry
    under "Attributes:" in the docstring of the class.
    """
    by_name = _attributes(inspect.getdoc(cls) or "")
    comments: dict[int, tuple[bool, str]] = {}  # line -> whether it is alone there, and the text
    source = textwrap.dedent(inspect.getsource(cls))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            comments[token.start[0]] = alone, token.string.removeprefix("#").strip()
    names = {field.name for field in dataclasses.fields(cls)}
    for number, line in enumerate(source.splitlines(), start=1):
        match = re.match(r"    (\w+): ", line)
        if not match or match[1] not in names:
            continue
        parts = [comments[number][1]] if number in comments else []
        above = number - 1
        while above in comments and comments[above][0]:
            parts.insert(0, comments[above][1])
            above -= 1
        if parts:
            by_name[match[1]] = " ".join(parts)
    return by_name


def _summary(module: str) -> str:
    """First line of a module's docstring, read from its file: nothing is imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    source = pathlib.Path(spec.origin).read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _fields(cls: type, prefix: str) -> Iterator[tuple[str, type, str]]:
    for name, hint in typing.get_type_hints(cls).items():
        groups = config_reader.groups(hint)
        if not groups:
            yield prefix + name, cls, name
        for group in groups:
            yield from _fields(group, f"{prefix}{name}.")


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's section "Attributes:"."""
    _, _, section = docstring.partition("\nAttributes:\n")
    entries: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r"  (\w+): (.*)", line)
        if entry:
            name, entries[entry[1]] = entry[1], entry[2]
        elif name and line.startswith("    "):
            entries[name] += " " + line.strip()
        else:
            break
    return entries


def _assignments(values: Mapping[str, Any], cls: type, prefix: str = "") -> list[str]:
    """Lines of a config, or of the group of keys of a prefix, in the order of its dataclass."""
    lines = []
    for key, value, owner, name in _leaves(values, cls, prefix):
        text, meaning = f"config.{key} = {value!r}", meanings(owner).get(name, "")
        if meaning and len(text) + len(meaning) + 4 > WIDTH:
            lines += [*(f"# {line}" for line in textwrap.wrap(meaning, WIDTH - 2)), text]
        else:
            lines.append(f"{text}  # {meaning}" if meaning else text)
    return lines


def _leaves(
    values: Mapping[str, Any], cls: Any, prefix: str
) -> Iterator[tuple[str, Any, type, str]]:
    """Dotted keys and values, each with its dataclass and field."""
    for name, hint in typing.get_type_hints(cls).items():
        value, key = values[name], prefix + name
        if typing.get_origin(hint) is Mapping and config_reader.groups(typing.get_args(hint)[1]):
            for inner, of_name in value.items():
                yield from _leaves(of_name, typing.get_args(hint)[1], f"{key}.{inner}.")
            continue
        group = config_reader.chosen_group(hint, value, f"config.{key}")
        if group is None or value is None:
            yield key, value, cls, name
        else:
            yield from _leaves(value, group, f"{key}.")


def _entry(name: str, text: str) -> list[str]:
    """A name with its meaning beside or below it."""
    column = 34
    head = f"  {name}"
    lines = textwrap.wrap(text, WIDTH - column) or [""]
    if len(head) >= column - 1:
        return [head, *(" " * column + line for line in lines if line)]
    return [head.ljust(column) + lines[0], *(" " * column + line for line in lines[1:])]
