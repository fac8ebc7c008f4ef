"""vLLM V1's scheduler."""

from __future__ import annotations

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy


class Vllm(RulePolicy):
    """The running first, in order of admission, then the queue, prompts in pieces, until the token budget is spent.

    A running request that finds no block preempts the last admitted, which is computed anew later; after a
    preemption nobody is let in in that step. The first of the queue that does not fit stops admission.

    Source: vllm-project/vllm 0.25.1, v1/core/sched/scheduler.py; `make test-vllm` holds steps and victims against it.
    Departures: a step that would run nothing is filled anew at once; with `priority` and prefix caching, blocks that a
    preempted member of the step at hand would have filled cannot be found (there they can, though never computed);
    requests that the pool or the context could never hold are refused on arrival.

    Args:
        threshold: largest piece of a prompt, `long_prefill_token_threshold`; 0 for none.
        full_input: `scheduler_reserve_full_isl`: the whole prompt must fit, not only its first piece.
        watermark: share of the blocks kept free when admitting beside others.
        priority: queue and victims by (priority, arrival) instead of arrival.
        chunked: `enable_chunked_prefill`: a prompt is cut where the budget ends.
    """

    def __init__(
        self,
        threshold: int = 0,
        full_input: bool = True,
        watermark: float = 0.0,
        priority: bool = False,
        chunked: bool = True,
    ) -> None:
        rule = BatchingRule(
            piece_tokens=threshold,
            full_input=full_input,
            watermark=watermark,
            order="priority" if priority else "arrival",
            victim="lowest-priority" if priority else "last",
            undivided=not chunked,
        )
        super().__init__("vllm", rule)


class VllmLeastComputed(RulePolicy):
    """vLLM's rules, but the victim is the running request with the fewest tokens computed.

    Source: vllm-project/vllm issue 54644 (recompute tax), 2026.
    """

    def __init__(self) -> None:
        super().__init__("vllm-lcf", BatchingRule(victim="least-computed"))
