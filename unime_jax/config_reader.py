"""From a ConfigDict to frozen dataclasses, with errors that name the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def read(cls: type[T], config: Mapping[str, Any], where: str = "config") -> T:
    """A dataclass from a mapping, recursively.

    Raises:
      ValueError: unknown keys (with the nearest valid name), missing keys, wrong types.
    """
    hints = typing.get_type_hints(cls)
    unknown = [key for key in config if key not in hints]
    missing = [key for key in hints if key not in config]
    problems = []
    for key in unknown:
        near = difflib.get_close_matches(key, hints, n=1)
        hint = f"; did you mean {where}.{near[0]}?" if near else f"; known: {', '.join(hints)}"
        problems.append(f"unknown key {where}.{key}{hint}")
    problems += [f"missing key {where}.{key} ({_name(hints[key])})" for key in missing]
    if problems:
        raise ValueError("\n".join(problems))
    return cls(**{key: _value(hint, config[key], f"{where}.{key}") for key, hint in hints.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a group of keys, not {value!r}")
        return read(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value not in arguments:
        raise ValueError(f"{where} is {value!r}; use one of {', '.join(map(repr, arguments))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        return _value(_meant(kinds, value, where), value, where)
    if origin in (tuple, Sequence):
        return _values(hint, value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a group of keys, not {value!r}")
        return {key: _value(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint in (bool, int, float, str) and (wrong_bool or not isinstance(value, hint)):
        raise ValueError(f"{where} must be of type {_name(hint)}, not {value!r}")
    return value


def _meant(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The one of several dataclasses whose literal `objective` the value names."""
    if len(kinds) == 1 or not isinstance(value, Mapping):
        return kinds[0]
    named = {typing.get_args(typing.get_type_hints(k)["objective"])[0]: k for k in kinds}
    chosen = value.get("objective")
    if chosen not in named:
        raise ValueError(f"{where}.objective is {chosen!r}; use one of {', '.join(named)}")
    return named[chosen]


def _values(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{where} must be a sequence, not {value!r}")
    each = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or each[-1] is Ellipsis:
        each = (each[0],) * len(value)
    if len(each) != len(value):
        names = ", ".join(map(_name, each))
        raise ValueError(f"{where} must be ({names}), not {value!r}")
    return tuple(_value(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(each, value)))


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
