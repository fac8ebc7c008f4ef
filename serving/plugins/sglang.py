"""SGLang's queue under any scheduler of ours, through its plug-in hooks. Experimental.

The entry point `sglang.srt.plugins: dispatchgym` calls `register` in each of SGLang's processes. Without the
environment variable DISPATCHGYM_POLICY it does nothing. With it, two hooks: one around `SchedulePolicy.calc_priority`
puts the waiting queue in the policy's order, one around `PrefillAdder.add_one_req` keeps out whom the policy leaves
out. SGLang goes on to decide about everything else.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.serving.plugins.sglang_order import Director
from dispatchgym.serving.plugins.versions import require_sglang

STOCK = ("", "sglang")
ORDER = "sglang.srt.managers.schedule_policy.SchedulePolicy.calc_priority"
ADMIT = "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req"
BUDGET_S = 0.02
MOST_RUNNING, MOST_TOKENS = 256, 8192
"""Where SGLang's configuration does not say."""


def register() -> None:
    """SGLang's entry point.

    Raises:
        SystemExit: a policy was asked for that cannot decide there, or for another version of SGLang; it would go on
            under its own rules after any other exception.
    """
    name = os.environ.get("DISPATCHGYM_POLICY", "")
    if name in STOCK:
        return
    try:
        require_sglang(importlib.metadata.version("sglang"))
        director = director_for(name)
    except DispatchGymError as error:
        raise SystemExit(f"dispatchgym: {error}") from None
    from sglang.srt.managers.schedule_policy import AddReqResult
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.runtime_context import get_parallel

    order, admit = hooks(director, AddReqResult.OTHER, lambda: int(get_parallel().tp_size))
    HookRegistry.register(ORDER, order, HookType.AROUND)
    HookRegistry.register(ADMIT, admit, HookType.AROUND)


def director_for(name: str) -> Director:
    """What lets that scheduler decide.

    Raises:
        DispatchGymError: it cannot be loaded, or SGLang lacks what it cannot do without.
    """
    from dispatchgym.agents.export_targets import refuse_or_degrade
    from dispatchgym.envs.llm.mirror import Asked
    from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
    from dispatchgym.envs.llm.profile import load_profile
    from dispatchgym.serving.llm.schedulers import load_scheduler
    from dispatchgym.serving.plugins.sglang_order import log

    for loss in refuse_or_degrade(name, "sglang"):
        log.warning("%s: %s", name, loss)
    policy = load_scheduler(name).policy
    asked: Policy = Asked(policy) if isinstance(policy, CompiledPolicy) else policy
    profile = load_profile(os.environ.get("DISPATCHGYM_PROFILE", "h200-8b"))
    return Director(asked, profile, BUDGET_S, (MOST_RUNNING, MOST_TOKENS))


def hooks(director: Director, stop: object, ranks: Callable[[], int]) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Around `calc_priority` and around `add_one_req`.

    Args:
        stop: what `add_one_req` returns where nobody else is to come in.
        ranks: GPUs that share the engine, known once it runs.
    """

    def order(
        original: Callable[..., None], policy: Any, waiting_queue: list[Any], running_batch: Any = None, *rest: Any,
        **more: Any,
    ) -> None:  # fmt: skip
        original(policy, waiting_queue, running_batch, *rest, **more)
        if policy.enable_priority_scheduling:
            raise UsageError("a policy of dispatchgym orders the queue itself: leave --enable-priority-scheduling away")
        if ranks() > 1:  # each decides by a clock of its own, and all must decide alike
            raise UsageError("dispatchgym steers SGLang on one GPU an engine: leave --tp-size at 1")
        director.order(waiting_queue, running_batch, policy.tree_cache)

    def admit(original: Callable[..., Any], adder: Any, req: Any, *rest: Any, **more: Any) -> Any:
        # Those who are held stand behind all others in the queue, so that nobody is cut off by the stop.
        return stop if req.rid in director.held else original(adder, req, *rest, **more)

    return order, admit
