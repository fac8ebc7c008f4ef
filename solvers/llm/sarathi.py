"""Sarathi-Serve: chunked prefill beside decodes that are never stalled."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Sarathi(RulePolicy):
    """Every decode, then the prompts already begun, then new ones, in pieces, within `chunk` tokens a step.

    A request is let in when all blocks of its prompt fit, and takes them. The victim is the last admitted.

    Source: Agrawal et al., OSDI 2024; microsoft/sarathi-serve. Departure: one pipeline stage.

    Args:
        chunk: tokens of a step.
        last_chunk, stages, stage_tokens: with stages, the step's tokens for a prompt shrink as it is read, from `chunk`
            to `last_chunk`, one stage every `stage_tokens`: the original's schedule of chunks, off by default.
        max_running: requests that run at once.
        watermark: share of the blocks kept free when admitting.
    """

    def __init__(
        self,
        chunk: int = 512,
        max_running: int = 128,
        watermark: float = 0.01,
        last_chunk: int = 128,
        stages: int = 0,
        stage_tokens: int = 512,
    ) -> None:
        rule = BatchingRule(
            step_tokens=chunk, decodes_first=True, take_input=True, watermark=watermark, max_running=max_running,
            last_tokens=last_chunk, stages=stages, stage_tokens=stage_tokens,
        )  # fmt: skip
        super().__init__("sarathi", rule)
