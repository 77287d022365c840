"""From a ConfigDict to frozen dataclasses, with errors that name the key, all of them at once."""

import dataclasses
import difflib
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
    found = _group(cls, config, where, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def check(hint: Any, value: Any, where: str) -> None:
    """Raises ValueError if a value is not of a key's type."""
    problems: list[str] = []
    _value(hint, value, where, problems)
    if problems:
        raise ValueError("\n".join(problems))


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Known names that are spelled like `name`, the nearest first; or its name of today."""
    known = list(known)
    if name in RENAMED and name not in known:
        return [now for now in [RENAMED[name]] if now in known]
    return difflib.get_close_matches(name, known, n=count)


def chosen_group(hint: Any, value: Any, where: str) -> Any:
    """The dataclass that a key's group is read into; None for a key that is no group.

    Of several, the one whose literal `objective` the value names.

    Raises:
      ValueError: the value names none of them.
    """
    kinds = [kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)]
    if not kinds:
        return None
    return _meant(kinds, value, where)


def is_optional(hint: Any) -> bool:
    """Whether a key takes None."""
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
        each = [type_name(kind) for kind in arguments if kind is not Ellipsis]
        if origin is Sequence or arguments[-1] is Ellipsis:
            return f"({each[0]}, ...)"
        return f"({', '.join(each)})"
    if origin is Mapping:
        return f"{{{', '.join(map(type_name, arguments))}}}".replace(", ", ": ", 1)
    return getattr(hint, "__name__", str(hint))


def _group(cls: type[T], config: Mapping[str, Any], where: str, problems: list[str]) -> T:
    """The dataclass; of no use if there are problems then."""
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
    if len(problems) > before:
        return typing.cast(T, None)
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(str(error))
        return typing.cast(T, None)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
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
            return _value(_meant(_kinds(hint), value, where), value, where, problems)
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


def _meant(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The one of several dataclasses whose literal `objective` the value names."""
    if len(kinds) == 1 or not isinstance(value, Mapping):
        return kinds[0]
    named = {typing.get_args(typing.get_type_hints(k)["objective"])[0]: k for k in kinds}
    chosen = value.get("objective")
    if chosen not in named:
        raise ValueError(f"{where}.objective is {chosen!r}; use one of {', '.join(named)}")
    return named[chosen]


def _values(hint: Any, value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        problems.append(f"{where} must be a sequence, not {value!r}")
        return ()
    each = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or each[-1] is Ellipsis:
        each = (each[0],) * len(value)
    if len(each) != len(value):
        problems.append(f"{where} must be ({', '.join(map(type_name, each))}), not {value!r}")
        return ()
    pairs = enumerate(zip(each, value))
    return tuple(_value(h, v, f"{where}[{i}]", problems) for i, (h, v) in pairs)
