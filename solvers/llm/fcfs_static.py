"""Static batching, as FasterTransformer serves."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class FcfsStatic(RulePolicy):
    """Lets in a batch in order of arrival, runs it to the end of its last request, then lets in the next.

    Source: request-level batching, as in NVIDIA FasterTransformer. Departure: requests that end early cost nothing
    more, where padding would keep computing them.

    Args:
        max_running: size of a batch, 0 for the engine's limit.
    """

    def __init__(self, max_running: int = 0) -> None:
        super().__init__("fcfs-static", BatchingRule(mode="static", admission="reserve", max_running=max_running))
