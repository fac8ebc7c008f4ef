"""Who a request is, for schedulers that remember something of it."""

from __future__ import annotations

from dispatchgym.envs.llm.policy import RequestTable

Who = tuple[int, float]
"""Number and arrival."""


def who(table: RequestTable) -> list[Who]:
    """The requests of a table, in its order.

    Their numbers alone do not tell: a live engine gives the number of a request that has ended to another.
    """
    return list(zip(table.id.tolist(), table.arrival_s.tolist(), strict=True))
