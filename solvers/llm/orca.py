"""Orca: iteration-level scheduling."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Orca(RulePolicy):
    """First come, first served at every iteration, whole prompts beside decodes, worst-case memory for each request.

    Nobody is ever preempted: a request is let in when the longest sequences of all running requests fit together.

    Source: Yu et al., OSDI 2022, as reproduced in microsoft/sarathi-serve. Departures: prompts longer than a step's
    token limit run in pieces; memory is counted, not set aside.

    Args:
        reserve_tokens: tokens counted for every request, the longest sequence of the service; 0 for each request's
            own prompt and limit.
        max_running: requests that run at once, 0 for the engine's limit.
    """

    def __init__(self, reserve_tokens: int = 0, max_running: int = 0) -> None:
        rule = BatchingRule(undivided=True, admission="reserve", reserve_tokens=reserve_tokens, max_running=max_running)
        super().__init__("orca", rule)
