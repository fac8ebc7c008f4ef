"""Sarathi-Serve: chunked prefill beside decodes that are never stalled."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Sarathi(RulePolicy):
    """Every decode, then the prompts already begun, then new ones, in pieces, within `chunk` tokens a step.

    A request is let in when all blocks of its prompt fit, and takes them. The victim is the last admitted.

    Source: Agrawal et al., OSDI 2024; microsoft/sarathi-serve. Departure: one pipeline stage, fixed chunk.

    Args:
        chunk: tokens of a step.
        max_running: requests that run at once.
        watermark: share of the blocks kept free when admitting.
    """

    def __init__(self, chunk: int = 512, max_running: int = 128, watermark: float = 0.01) -> None:
        rule = BatchingRule(
            step_tokens=chunk, decodes_first=True, take_input=True, watermark=watermark, max_running=max_running
        )
        super().__init__("sarathi", rule)
