"""Admission by the memory in use now."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Aggressive(RulePolicy):
    """vLLM's steps; requests are let in while KV in use is below `limit` of the pool and their prompts fit.

    Source: the baseline of Gong et al., ASPLOS 2025 (WuSiYu/lightllm-ae).

    Args:
        limit: share of the KV pool up to which requests are let in.
        every: steps between two rounds of admission.
    """

    def __init__(self, limit: float = 0.95, every: int = 1) -> None:
        super().__init__("aggressive", BatchingRule(admission="current", limit=limit, every=every))
