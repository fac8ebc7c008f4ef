"""Admission by the memory in use now."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import Admission, BatchingRule, RulePolicy


class Aggressive(RulePolicy):
    """vLLM's steps; requests are let in while KV in use is below `limit` of the pool and their prompts fit.

    Source: the baseline of Gong et al., ASPLOS 2025 (WuSiYu/lightllm-ae).

    Args:
        limit: share of the KV pool up to which requests are let in.
        every: steps between two rounds of admission.
        with_prompt: the newcomer's prompt counts as in use, as in the paper's offline study; its server leaves it out.
    """

    def __init__(self, limit: float = 0.95, every: int = 1, with_prompt: bool = False) -> None:
        admission: Admission = "with-prompt" if with_prompt else "current"
        super().__init__("aggressive", BatchingRule(admission=admission, limit=limit, every=every))
