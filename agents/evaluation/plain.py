"""What families do with the options of job shops: refuse them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dispatchgym.envs.api import UsageError

if TYPE_CHECKING:
    from dispatchgym.agents.evaluation.request import Options


class PlainSuite(Protocol):
    """A named set of problems that needs nothing but to be built."""

    @property
    def name(self) -> str: ...
    @property
    def build(self) -> Callable[[], Iterable[Any]]: ...


def problems(suite: PlainSuite, options: Options) -> Sequence[Any]:
    """The suite's problems; the options of job shops are refused.

    Raises:
        UsageError: such an option; no data.
    """
    for option, value in (
        ("--variant", options.variant),
        ("--references", options.references),
        ("--shutdown-probabilities", options.shutdown_probabilities),
        ("--on-interrupt", options.on_interrupt),
    ):
        if value is not None:
            raise UsageError(f"{option} is for job shops; leave it out with {suite.name}")
    return list(suite.build())


def no_builder(options: Options) -> float:
    """There is no schedule builder.

    Raises:
        UsageError: its options.
    """
    if options.builder != "non-delay" or options.delta is not None:
        raise UsageError("--builder and --delta are for job shops; leave them out")
    return 0.0
