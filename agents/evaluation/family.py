"""What an evaluation asks of a family of problems, such as job shops or packing, and the families by name.

Everything else of this package works on any family: it plans, runs, times, keeps, compares and shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dispatchgym.agents.evaluation import plain
from dispatchgym.envs.api import UnknownNameError
from dispatchgym.envs.registry import Registry, unknown_name

if TYPE_CHECKING:
    from dispatchgym.agents.evaluation.request import Options
    from dispatchgym.agents.evaluation.summary import Entry
    from dispatchgym.agents.evaluation.work import Result, WorkItem

Kind = Literal["rule", "search", "solver", "clairvoyant", "learned"]
"""Decides step by step; tries many things and keeps the best; optimises the whole; the same, told the future."""

Finished = Sequence[tuple["WorkItem", "Result"]]
"""Every item of an evaluation with its result, in the plan's order."""


class AnyInstance(Protocol):
    """What is solved."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


class AnyProblem(Protocol):
    """An instance of a suite in one world.

    Attributes:
        family: a name in `FAMILIES`.
        variant: the world, a key of the family's titles.
        reference: what gaps are measured against, None where there is none.
        metric: what a run's value is, a name in `measures.MEASURES`.
        varies: whether seeds differ even under a policy that draws nothing.
        setting: everything besides the instance that a run depends on.
        records: about how many numbers a run's journal line holds.
    """

    @property
    def family(self) -> str: ...
    @property
    def suite(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def instance(self) -> Any: ...
    @property
    def variant(self) -> Any: ...
    @property
    def reference(self) -> Any: ...
    @property
    def metric(self) -> str: ...
    @property
    def varies(self) -> bool: ...
    @property
    def setting(self) -> str: ...
    @property
    def records(self) -> int: ...

    def scenario_name(self, seed: int) -> str | None:
        """How results name what the seed draws, or None."""

    def scenario(self, seed: int) -> Any:
        """What the seed draws: the same for every policy."""


class AnyPolicy(Protocol):
    """A policy of any family; see `policies.Policy`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def variants(self) -> frozenset[Any]: ...
    @property
    def is_random(self) -> bool: ...

    def builder(self, variant: Any) -> str | None: ...
    def versions(self) -> dict[str, str | int]: ...
    def prepare(self, problem: Any) -> Callable[[Any, int], Any]: ...


class AnySuite(Protocol):
    """A named set of problems and how it is run unless told otherwise."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def policies(self) -> str: ...
    @property
    def seeds(self) -> int: ...


Column = tuple[str, Callable[["Entry"], str]]
"""Title and cell of a column that only some worlds have."""


@dataclass(frozen=True, slots=True)
class Remarks:
    """What runs noted beside their results.

    Args:
        lines: (variant, line) for readers, below the world's table.
        plain: for summary.json.
    """

    lines: Sequence[tuple[str, str]] = ()
    plain: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """One family; functions that raise DispatchGymError where a request cannot be carried out.

    Args:
        noun: what a policy gives: 'schedule'.
        titles: variant -> what a reader calls that world.
        kinds: what readers call each kind of policy, in the order of legends.
        cards: (label, kinds) of the best policies that a report begins with.
        shaded: what the shading of a report's tables means.
        notes: (term, explanation as HTML) at the end of a report.
        suites: the named suites.
        made: (form, meaning) of suites that are made on the spot.
        forms: (form, meaning) of its policies.
        suite: name -> suite, those made on the spot too.
        own: pattern of people's own files -> suite.
        parse_policy: a policy's name and `delta` -> policy.
        tiny: a problem -> one like it that takes no time, to warm up with.
        judge: what is left blank in a timed result, by the independent validator; problem, answer, scenario.
        columns: variant -> columns behind the mean.
        figures: variant and rows -> HTML of its own in the report; '' for none.
        evidence: writes everything needed to check the results.
        remarks: see there.
        delta: the classic shop's builder out of the options; 0 elsewhere.
        problems: suite and options -> problems, checked.
        asides: problems -> what a reader should know of them all.
    """

    name: str
    noun: str
    titles: Mapping[str, str]
    kinds: Mapping[Kind, str]
    cards: Sequence[tuple[str, Sequence[Kind]]]
    shaded: str
    notes: Sequence[tuple[str, str]]
    suites: Callable[[], Iterable[AnySuite]]
    made: Sequence[tuple[str, str]]
    forms: Sequence[tuple[str, str]]
    suite: Callable[[str], AnySuite]
    own: Callable[[str], AnySuite]
    parse_policy: Callable[[str, float], AnyPolicy]
    tiny: Callable[[Any], AnyProblem]
    judge: Callable[[Result, Any, Any, Any], Result]
    columns: Mapping[str, Sequence[Column]]
    figures: Callable[[str, Finished, Sequence[Entry]], str]
    evidence: Callable[[Finished, Path], None]
    remarks: Callable[[Finished], Remarks]
    delta: Callable[[Options], float] = plain.no_builder
    problems: Callable[[Any, Options], Sequence[AnyProblem]] = plain.problems
    asides: Callable[[Sequence[Any]], list[str]] = plain.no_asides


FAMILIES = Registry(
    "family",
    {
        "jobshop": "dispatchgym.agents.evaluation.jobshop:JOBSHOP",
        "packing": "dispatchgym.agents.evaluation.packing.family:PACKING",
        "llm": "dispatchgym.agents.evaluation.llm.family:LLM",
    },
)


def family_of(problem: AnyProblem) -> Family:
    """The family of a problem."""
    found: Family = FAMILIES[problem.family]
    return found


def every_family() -> list[Family]:
    """All of them, in a fixed order."""
    return [FAMILIES[name] for name in FAMILIES]


def of_variant(variant: str) -> Family:
    """The family that knows this world."""
    return next(each for each in every_family() if variant in each.titles)


def title(variant: str) -> str:
    """What a reader calls a world."""
    return of_variant(variant).titles[variant]


def find_suite(name: str) -> tuple[Family, AnySuite]:
    """The suite called `name` and its family.

    Raises:
        UnknownNameError: with the closest names of all families.
        UsageError: a suite made on the spot that cannot be.
    """
    head = name.partition("/")[0]
    family: Family = FAMILIES[head if head in FAMILIES else "jobshop"]
    try:
        return family, family.suite(name)
    except UnknownNameError:
        families = every_family()
        known = [suite.name for each in families for suite in each.suites()]
        raise unknown_name("suite", name, [*known, *(form for f in families for form, _ in f.made)]) from None
