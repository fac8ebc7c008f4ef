"""What families do with the options of others: refuse them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.backends import SIMULATED

if TYPE_CHECKING:
    from dispatchgym.agents.evaluation.request import Options


class PlainSuite(Protocol):
    """A named set of problems that needs nothing but to be built."""

    @property
    def name(self) -> str: ...
    @property
    def build(self) -> Callable[[], Iterable[Any]]: ...


def problems(suite: PlainSuite, options: Options) -> Sequence[Any]:
    """The suite's problems; the options of job shops and of LLM traffic are refused.

    Raises:
        UsageError: such an option; no data.
    """
    no_traffic(suite.name, options)
    no_shops(suite.name, options)
    return list(suite.build())


def no_shops(name: str, options: Options) -> None:
    """The suite of that name has no job shops.

    Raises:
        UsageError: their options.
    """
    for option, value in (
        ("--variant", options.variant),
        ("--references", options.references),
        ("--shutdown-probabilities", options.shutdown_probabilities),
        ("--on-interrupt", options.on_interrupt),
    ):
        if value is not None:
            raise UsageError(f"{option} is for job shops; leave it out with {name}")


def no_traffic(name: str, options: Options) -> None:
    """The suite of that name has no LLM traffic.

    Raises:
        UsageError: their options.
    """
    for option, value in (
        ("--executor", None if options.executor == SIMULATED else options.executor),
        ("--model", options.model),
        ("--device", options.device),
        ("--profile", options.profile),
        ("--requests", options.requests),
    ):
        if value is not None:
            raise UsageError(f"{option} is for LLM traffic; leave it out with {name}")


def no_builder(options: Options) -> float:
    """There is no schedule builder.

    Raises:
        UsageError: its options.
    """
    if options.builder != "non-delay" or options.delta is not None:
        raise UsageError("--builder and --delta are for job shops; leave them out")
    return 0.0


def no_asides(problems: Sequence[Any]) -> list[str]:
    """There is nothing to say."""
    return []
