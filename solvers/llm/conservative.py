"""Admission by worst-case output lengths."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Conservative(RulePolicy):
    """vLLM's steps; a request is let in when prompt and longest output of all running requests fit together.

    Source: the baseline of Gong et al., ASPLOS 2025 (WuSiYu/lightllm-ae); TensorRT-LLM's GUARANTEED_NO_EVICT is of
    this kind. Departure: any number of requests a round, as for every scheduler here.

    Args:
        limit: share of the KV pool that may be promised.
        assumed_new: output tokens counted for everyone; 0 for each request's own limit.
        every: steps between two rounds of admission.
    """

    def __init__(self, limit: float = 0.95, assumed_new: int = 0, every: int = 1) -> None:
        rule = BatchingRule(admission="reserve", limit=limit, assumed_new=assumed_new, every=every)
        super().__init__("conservative", rule)
