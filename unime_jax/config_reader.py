"""A reader of ConfigDicts into frozen dataclasses; its errors name the key, all of them at once."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")

# Last parts of keys by the names that they had before.
RENAMED = {"homogeneous": "source_run", "orphans": "missing_images", "tile": "column_block"}


def read(cls: type[T], config: Mapping[str, Any], where: str = "config") -> T:
    """A dataclass from a mapping, recursively.

    Raises:
      ValueError: unknown keys (with the nearest valid name), missing keys, wrong types, and what a
        dataclass itself says of its values; a line each.
    """
    problems: list[str] = []
    settings = _group(cls, config, where, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return settings


def placed(cls: type, text: str, where: str) -> str:
    """What is said of the keys of a whole config, of the place that it has in another config."""
    names = "|".join(name for name in typing.get_type_hints(cls) if name != "job")
    return re.sub(rf"\bconfig\.(?=({names})\b)", f"{where}.", text)


def typed(hint: Any, value: Any, where: str) -> Any:
    """A value as a dataclass holds it. Raises ValueError if it is not of the key's type."""
    problems: list[str] = []
    value = _value(hint, value, where, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return value


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Known names that are spelled like `name`, the nearest first; or its name of today."""
    known = list(known)
    if name not in known and RENAMED.get(name) in known:
        return [RENAMED[name]]
    return difflib.get_close_matches(name, known, n=count)


def groups(hint: Any) -> list[type]:
    """The dataclasses that a key's group may be read into; none for a key that is no group."""
    return [typing.cast(type, kind) for kind in _kinds(hint) if dataclasses.is_dataclass(kind)]


def chosen_group(hint: Any, value: Any, where: str) -> Any:
    """The dataclass that a key's group is read into; None for a key that is no group.

    Raises:
      ValueError: there are several, and the value names none of them.
    """
    kinds = groups(hint)
    return _named(kinds, value, where) if kinds else None


def is_optional(hint: Any) -> bool:
    """True if a key takes None."""
    return type(None) in typing.get_args(hint)


def type_name(hint: Any) -> str:
    """A key's type for people, such as "int or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(kind) for kind in arguments)
    if hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (tuple, Sequence):
        each = [_element_name(kind) for kind in arguments if kind is not Ellipsis]
        if origin is Sequence or arguments[-1] is Ellipsis:
            return f"({each[0]}, ...)"
        return f"({', '.join(each)})"
    if origin is Mapping:
        return f"{{{', '.join(map(type_name, arguments))}}}".replace(", ", ": ", 1)
    return getattr(hint, "__name__", str(hint))


def _group(cls: type[T], config: Mapping[str, Any], where: str, problems: list[str]) -> T:
    """The dataclass; None if there are problems."""
    hints = typing.get_type_hints(cls)
    before = len(problems)
    for key in config:
        if key not in hints:
            near = nearest(key, hints)
            hint = f"; did you mean {where}.{near[0]}?" if near else f"; known: {', '.join(hints)}"
            problems.append(f"unknown key {where}.{key}{hint}")
    problems += [
        f"missing key {where}.{key} ({type_name(hint)})"
        for key, hint in hints.items()
        if key not in config
    ]
    values = {
        key: _value(hint, config[key], f"{where}.{key}", problems)
        for key, hint in hints.items()
        if key in config
    }
    made = None
    if len(problems) == before:
        try:
            made = cls(**values)
        except ValueError as error:
            problems.append(str(error))
    if "job" in hints:  # a whole config, whose own sentences say "config." of its keys
        problems[before:] = [placed(cls, problem, where) for problem in problems[before:]]
    return typing.cast(T, made)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(hint)}
        if not isinstance(value, Mapping):
            problems.append(f"{where} must be a group of keys, not {value!r}")
            return None
        return _group(typing.cast(type, hint), value, where, problems)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value not in arguments:
        problems.append(f"{where} is {value!r}; use one of {', '.join(map(repr, arguments))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and is_optional(hint):
            return None
        try:
            return _value(_named(_kinds(hint), value, where), value, where, problems)
        except ValueError as error:
            problems.append(str(error))
            return None
    if origin in (tuple, Sequence):
        return _values(hint, value, where, problems)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            problems.append(f"{where} must be a group of keys, not {value!r}")
            return None
        return {k: _value(arguments[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint in (bool, int, float, str) and (wrong_bool or not isinstance(value, hint)):
        problems.append(f"{where} must be of type {type_name(hint)}, not {value!r}")
    return value


def _kinds(hint: Any) -> list[Any]:
    """The types that a key takes, but for None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return [hint]


def _named(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The dataclass whose first key, a Literal of names, takes the value's name."""
    if len(kinds) == 1 or not isinstance(value, Mapping):
        return kinds[0]
    key = dataclasses.fields(kinds[0])[0].name
    by_name = {
        name: kind for kind in kinds for name in typing.get_args(typing.get_type_hints(kind)[key])
    }
    name = value.get(key)
    if name not in by_name:
        raise ValueError(f"{where}.{key} is {name!r}; use one of {', '.join(by_name)}")
    return by_name[name]


def _values(hint: Any, value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    each = typing.get_args(hint)
    if isinstance(value, str) or not isinstance(value, Sequence):
        of = f" of {_element_name(each[0])}" if dataclasses.is_dataclass(each[0]) else ""
        problems.append(f"{where} must be a sequence{of}, not {value!r}")
        return ()
    if typing.get_origin(hint) is not tuple or each[-1] is Ellipsis:
        each = (each[0],) * len(value)
    if len(each) != len(value):
        problems.append(f"{where} must be ({', '.join(map(type_name, each))}), not {value!r}")
        return ()
    pairs = enumerate(zip(each, value))
    return tuple(_element(h, v, f"{where}[{i}]", problems) for i, (h, v) in pairs)


def _element(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """An element of a sequence. A dataclass is written as a call, and the error shows how.

    As in a call, what has a default may be left out.
    """
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        fields = dataclasses.fields(hint)
        defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        value = defaults | dict(value)
    if not dataclasses.is_dataclass(hint) or isinstance(value, (Mapping, typing.cast(type, hint))):
        return _value(hint, value, where, problems)
    problem = f"{where} must be {_element_name(hint)}, not {value!r}"
    names = [field.name for field in dataclasses.fields(hint)]
    if isinstance(value, tuple | list) and len(value) <= len(names):
        arguments = ", ".join(f"{name}={part!r}" for name, part in zip(names, value))
        problem += f"; write {type_name(hint)}({arguments})"
    problems.append(problem)
    return None


def _element_name(hint: Any) -> str:
    """The type of a sequence's element; of a dataclass with its arguments."""
    if not dataclasses.is_dataclass(hint):
        return type_name(hint)
    hints = typing.get_type_hints(hint)
    return f"{type_name(hint)}({', '.join(f'{k}={type_name(h)}' for k, h in hints.items())})"
