"""Earliest deadline first."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class EarliestDeadline(RulePolicy):
    """vLLM's steps; the queue goes by the time at which the first token is due.

    Source: Liu and Layland, 1973. Requests without a bound come last, in order of arrival.
    """

    def __init__(self) -> None:
        super().__init__("edf", BatchingRule(order="deadline"))
