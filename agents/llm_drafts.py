"""How many speculative tokens a step's decoding requests verify."""

from __future__ import annotations

from typing import Any

from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.solvers.llm.costs import decode_s


def draft_of(head: Any, spec: EngineSpec) -> int:
    """Speculative tokens a decoding request by which most time is won; the next is right with the engine's acceptance.

    Tokens of a request cost time whenever they are made: in steps that only decode, with the best draft, so much each.
    A draft of this step is worth that for every token that it is expected to put out, less what it adds to the step.
    None where blocks are short.

    Args:
        head: of a `Sight`, the step's plan.
    """
    profile, config = spec.profile, spec.config
    if config.max_spec == 0:
        return 0
    requests, read, others = int(head["decodes"]), int(head["context"]), int(head["prefill_tokens"])
    if requests == 0 or head["free"] < requests:
        return 0
    out, total = [], 0.0
    for k in range(config.max_spec + 1):
        total += config.acceptance**k
        out.append(total)
    longest = min(config.max_spec, int(head["budget"]) // requests)
    each_s = min(_step_s(profile, requests, read, k, 0) / out[k] for k in range(config.max_spec + 1))
    return min(range(longest + 1), key=lambda k: _step_s(profile, requests, read, k, others) - each_s * out[k])


def _step_s(profile: Profile, requests: int, read: int, draft: int, others: int) -> float:
    """Seconds of a step in which so many requests verify drafts over `read` tokens, beside `others` of prompts."""
    if draft == 0 and others == 0:
        return decode_s(profile, requests, read)
    p = profile
    work = p.base_s + max(p.weights_s, p.token_s * (requests * (1 + draft) + others)) + p.row_s * requests
    work += (p.context_s + (p.ragged_s if draft else 0.0)) * (read + draft * requests)
    return max(work, p.host_s) + p.rebuild_s
