"""Overrides on the command line, `--config.<key>=<value>`, read by the types of the keys.

The types are those of the dataclasses that the config is read into, not of a recipe's values, so
that an optional key takes None and a key that is None takes a value.
"""

import ast
import dataclasses
import math
import re
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from unime_jax import config, config_reader

Override = tuple[str, str]  # a dotted key, and the text of its value

_FLAG = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(?:=(?P<value>.*))?", re.DOTALL)
# Trainings that are parts of another config.
_TRAININGS = {config.PlanConfig: ("run",), config.RoundsConfig: ("initial", "train")}
_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")  # as absl has them


def split(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides among the arguments of a command, and the other arguments.

    `--config.key=value`, `--config.key value`, and for booleans `--config.key`, `--noconfig.key`.
    """
    overrides: list[Override] = []
    others: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag = _FLAG.fullmatch(argument)
        if argument == "--":
            return overrides, [*others, argument, *left]
        if flag is None:
            others.append(argument)
        elif flag["value"] is not None:
            overrides.append((flag["key"], flag["value"]))
        elif flag["no"]:
            overrides.append((flag["key"], "false"))
        elif left and re.match(r"[^-]|-[\d.]|$", left[0]):
            overrides.append((flag["key"], left.pop(0)))
        else:
            overrides.append((flag["key"], "true"))
    return overrides, others


def apply(values: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets keys of a config in place, in order. Keys that refer to another one follow it.

    A tuple key that is given several times, an element each, takes them all.

    Raises:
      ValueError: unknown keys, with the nearest known ones, and values of a wrong type; a line
        each.
    """
    problems = []
    several: dict[str, tuple[Any, ...]] = {}
    for key, text in overrides:
        try:
            group, name, hint = _find(values, key)
            value = _parse(hint, text)
            if isinstance(value, _Element):
                several[key] = value = (*several.get(key, ()), value.value)
        except ValueError as error:
            problems.append(str(error))
            continue
        try:
            checked = config_reader.typed(hint, value, f"config.{key}")
        except ValueError as error:
            also = " (or None)" if config_reader.is_optional(hint) else ""
            problems.append(f"{error}{also}")
            continue
        if isinstance(checked, tuple):  # of dataclasses, for example; groups stay mappings
            value = checked
        with values.ignore_type(), values.unlocked():
            group[name] = value
    if problems:
        raise ValueError("\n".join(problems))


def refuse_plan(recipe: str, overrides: Sequence[Override]) -> None:
    """Raises ValueError, with the right command, if a plan is asked of a recipe for another job."""
    if not any(
        (key, text) == ("job", "plan") or key.startswith("plan.") for key, text in overrides
    ):
        return
    flags = [
        f"--config.{key.removeprefix('plan.') if key.startswith('plan.') else f'run.{key}'}={text}"
        for key, text in overrides
        if key != "job"
    ]
    command = shlex.join([f"--config=plan:{recipe}", *flags])
    raise ValueError(
        f"--config={recipe}: a plan has a config of its own, with the recipe below config.run. "
        f"Instead: {command}"
    )


def fit_short_run(
    values: ConfigDict, recipe: Mapping[str, Any], given: set[str], where: str = "config"
) -> list[str]:
    """Shortens the warm-up of a run with fewer steps than it, to the recipe's share of all steps.

    A warm-up that is itself `given` on the command line stays as it is. The recipe's steps give way
    to passes over the data that are given.

    Args:
      values: the config, changed in place; of a plan or rounds, their trainings are meant.
      recipe: the config before anything was overridden.
      where: what the config is called in sentences.

    Returns:
      sentences for the user: what was changed, and what so few steps leave unused.
    """
    kind = config.kind_of(values)
    remarks: list[str] = []
    for part in _TRAININGS.get(kind, ()):
        if recipe[part] is not None and values[part] is not None:
            of_part = {key.removeprefix(f"{part}.") for key in given if key.startswith(f"{part}.")}
            remarks += fit_short_run(values[part], recipe[part], of_part, f"{where}.{part}")
    if kind is not config.TrainConfig:
        return remarks
    if values.epochs and values.steps and "epochs" in given and "steps" not in given:
        remarks.append(f"{where}.steps: {values.steps} -> 0, as {where}.epochs says how many")
        values.steps = 0
    steps, optimizer = values.steps, values.optimizer
    length = optimizer.schedule_steps or steps
    warmup = optimizer.warmup_steps or 0
    if 0 < length <= warmup and "optimizer.warmup_steps" not in given:
        longest = min(length - 1, warmup)
        share = warmup / max(recipe["steps"], warmup)
        fitting = min(longest, math.ceil(share * length))
        remarks.append(
            f"{where}.optimizer.warmup_steps: {warmup} -> {fitting}, as a run of "
            f"{length} steps would have none at the full learning rate; set it for another value"
        )
        optimizer.warmup_steps = fitting
    if 0 < steps <= values.infonce_steps and values.job == "train":
        remarks.append(
            f"all {steps} steps are plain InfoNCE, as {where}.infonce_steps="
            f"{values.infonce_steps}, so that {where}.loss is not used; set "
            f"{where}.infonce_steps to try it"
        )
    return remarks


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a dataclass and their types; of alternatives all."""
    for name, hint in typing.get_type_hints(cls).items():
        groups = config_reader.groups(hint)
        if not groups:
            yield prefix + name, hint
        below: dict[str, Any] = {}
        for group in groups:
            below |= {key: h for key, h in keys(group, f"{prefix}{name}.") if key not in below}
        yield from below.items()


def _find(values: ConfigDict, key: str) -> tuple[ConfigDict, str, Any]:
    """The group that holds a dotted key, the key's name in the group, and its type."""
    *above, name = key.split(".")
    kind: Any = config.kind_of(values)
    group, at = values, "config"
    for part in above:
        hint = _type_of(kind, group, part, key, values)
        at = f"{at}.{part}"
        if typing.get_origin(hint) is Mapping:
            kind = hint
        else:
            now = group.get(part)
            now = now.to_dict() if isinstance(now, ConfigDict) else now
            kind = config_reader.chosen_group(hint, now, at)
        if kind is None:
            raise ValueError(f"--config.{key}: {at} is no group of keys, but a value")
        if group.get(part) is None:
            with values.ignore_type(), values.unlocked():
                group[part] = _defaults(kind)
        group = group[part]
        if not isinstance(group, ConfigDict):
            raise ValueError(f"--config.{key}: {at} must be a group of keys, not {group!r}")
    return group, name, _type_of(kind, group, name, key, values)


def _type_of(kind: Any, group: ConfigDict, name: str, key: str, values: ConfigDict) -> Any:
    """The type of a group's key; `kind` is the group's dataclass, or its type of mapping."""
    if typing.get_origin(kind) is Mapping:
        of_values = typing.get_args(kind)[1]
        if name in group or not config_reader.groups(of_values):
            return of_values  # numbers and texts may have new names, whole configs may not
        known = list(group)
    else:
        hints = typing.get_type_hints(kind)
        if name in hints:
            return hints[name]
        known = list(hints)
    everywhere = [k for k, _ in keys(config.kind_of(values)) if _has_group(values, k)]
    raise ValueError(_no_such_key(key, name, known, everywhere))


def _has_group(values: ConfigDict, key: str) -> bool:
    """Whether a config has the group of a key, which may be of another loss."""
    for name in key.split(".")[:-1]:
        inner = values.get(name)
        if not isinstance(inner, ConfigDict):
            return False
        values = inner
    return True


def _no_such_key(key: str, name: str, known: Sequence[str], everywhere: Sequence[str]) -> str:
    parts = key.split(".")
    place = len(parts) - 1 if parts[-1] == name and name not in parts[:-1] else parts.index(name)
    said = f"--config.{key}: there is no such key"
    today = config_reader.RENAMED.get(name)
    near = [] if today and today not in known else config_reader.nearest(name, known)
    if near:
        whole = ".".join([*parts[:place], near[0], *parts[place + 1 :]])
        if place + 1 < len(parts) and whole not in everywhere:
            whole = ".".join([*parts[:place], near[0]])
        return f'{said}; did you mean --config.{whole}, "{near[0]}" instead of "{name}"?'
    by_name: dict[str, list[str]] = {}
    for other in everywhere:
        by_name.setdefault(other.rpartition(".")[2], []).append(other)
    names = [parts[-1]] if parts[-1] in by_name else config_reader.nearest(parts[-1], by_name, 2)
    elsewhere = [k for n in names for k in by_name[n]]
    if elsewhere:
        return f"{said}; did you mean {' or '.join(f'--config.{k}' for k in elsewhere[:3])}?"
    group = ".".join(["config", *parts[:place]])
    return f"{said}; {group} has {', '.join(known)}"


def _defaults(kind: Any) -> ConfigDict:
    """A new group, with the defaults of its dataclass."""
    given = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return ConfigDict({f.name: f.default for f in given if f.default is not dataclasses.MISSING})


@dataclasses.dataclass(frozen=True)
class _Element:
    """An element of a tuple that is given in several flags."""

    value: Any


def _parse(hint: Any, text: str) -> Any:
    """The value that a text stands for; the text itself where it is not of the type."""
    if config_reader.is_optional(hint):
        (hint,) = [kind for kind in typing.get_args(hint) if kind is not type(None)][:1]
        if text == "None" or (hint is not str and text.lower() in ("none", "null")):
            return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return text
    if hint is bool:
        return _boolean(text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    if origin is Literal:
        return {str(value): value for value in arguments}.get(text, text)
    each = arguments[0] if origin in (tuple, Sequence) else None
    try:
        value = _literal(text, each)
    except (ValueError, SyntaxError):
        value = text
    if each is None:
        return value
    if isinstance(value, tuple | list):
        return tuple(value)
    if arguments[-1] is Ellipsis:
        if each in (str, int, float):
            return _Element(_parse(each, text))
        if dataclasses.is_dataclass(each) and isinstance(value, Mapping):
            return _Element(value)
    return value


def _literal(text: str, kind: Any) -> Any:
    """The Python literal that a text is; calls of the dataclass `kind` become mappings."""
    tree = ast.parse(text.strip(), mode="eval")
    if dataclasses.is_dataclass(kind):
        tree = _CallsAsMappings(typing.cast(type, kind)).visit(tree)
    return ast.literal_eval(tree)


class _CallsAsMappings(ast.NodeTransformer):
    """Turns `Bucket(tokens=8, tiles=0)` into {"tokens": 8, "tiles": 0, ...}, with its defaults."""

    def __init__(self, kind: type):
        self.kind = kind

    def visit_Call(self, node: ast.Call) -> ast.expr:  # noqa: N802
        fields = dataclasses.fields(self.kind)
        named = [keyword.arg for keyword in node.keywords]
        called = isinstance(node.func, ast.Name) and node.func.id == self.kind.__name__
        if not called or None in named or len(node.args) > len(fields):
            return node  # which is no literal
        values: dict[str | None, ast.expr] = {
            f.name: ast.Constant(f.default) for f in fields if f.default is not dataclasses.MISSING
        }
        values |= {field.name: value for field, value in zip(fields, node.args)}
        values |= {keyword.arg: keyword.value for keyword in node.keywords}
        return ast.Dict([ast.Constant(name) for name in values], list(values.values()))


def _boolean(text: str) -> bool | str:
    if text.lower() in _TRUE:
        return True
    return False if text.lower() in _FALSE else text
