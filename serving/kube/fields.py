"""Fields of untrusted JSON, by type: a wrong one is a PayloadError that names it, a missing one is empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatchgym.serving.kube.quantity import PayloadError

Json = Mapping[str, Any]
LONGEST_NAME = 253


def an_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise PayloadError(f"{what}: {value!r:.60} is not an object")
    return value


def a_map(parent: Json, key: str, what: str) -> Json:
    value = parent.get(key)
    return {} if value is None else an_object(value, f"{what}: {key}")


def a_list(parent: Json, key: str, what: str) -> list[Any]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not a list")
    return value


def objects(parent: Json, key: str, what: str) -> list[Json]:
    return [an_object(value, f"{what}: {key}") for value in a_list(parent, key, what)]


def texts(parent: Json, key: str, what: str) -> list[str]:
    values = a_list(parent, key, what)
    if not all(isinstance(value, str) for value in values):
        raise PayloadError(f"{what}: {key} is {values!r:.60}, not a list of texts")
    return values


def a_text(parent: Json, key: str, what: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not text")
    is_name = key in ("name", "namespace", "nodeName", "uid")
    if is_name and not (len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()):
        raise PayloadError(f"{what}: {key} {value!r:.60} is not up to {LONGEST_NAME} printable ASCII characters")
    return value


def a_flag(parent: Json, key: str, what: str) -> bool:
    value = parent.get(key)
    if value is not None and not isinstance(value, bool):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, neither true nor false")
    return bool(value)


def an_int(parent: Json, key: str, what: str, default: int) -> int:
    value = parent.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not a whole number of 32 bits")
    return value


def pairs(parent: Json, key: str, what: str) -> dict[str, str]:
    table = a_map(parent, key, what)
    if not all(isinstance(value, str) for value in table.values()):
        raise PayloadError(f"{what}: {key} holds a value that is not text")
    return dict(table)


def whole(text: str | None) -> int | None:
    """A decimal whole number of at most 18 digits, None for anything else."""
    if text is None or len(text) > 19:
        return None
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else None
