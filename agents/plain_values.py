"""Dataclasses from nested plain values, as YAML and JSON hold them, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import unknown_name


def build(kind: Any, value: Any, where: str) -> Any:
    """A dataclass of nested plain values; `where` is what errors call it.

    Raises:
        UsageError: a value of the wrong kind; UnknownNameError: a key that does not exist.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{where or 'the configuration'} is {value!r:.80}; it must be a mapping of keys")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    for name in value:
        if name not in known:
            raise unknown_name("key", f"{where}.{name}" if where else str(name), _dotted(where, known))
    return kind(**{n: _convert(hints[n], v, f"{where}.{n}" if where else n) for n, v in value.items()})


def _dotted(where: str, names: set[str]) -> list[str]:
    return [f"{where}.{name}" if where else name for name in names]


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` asks, or a one-line error that names the key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where} is {value!r}; it must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} is {value!r}; it must be a list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise UsageError(f"{where} is {value!r}; it must be a list of {len(inner)}")
        return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML 1.1 reads 4e-4 as text
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise UsageError(f"{where} is {value!r}; it must be {hint.__name__}")


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain values: what YAML and JSON can hold."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
