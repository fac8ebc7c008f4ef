"""vLLM under any scheduler of ours: `--scheduler-cls dispatchgym.serving.plugins.vllm.LearnedScheduler`.

Which one is said by the environment variable DISPATCHGYM_POLICY, or by
`--additional-config '{"dispatchgym": {"policy": "sarathi"}}'`. Without either the engine does what it does anyway.

vLLM fills every step itself: a policy only says who is on its lists, in which order, and how many tokens there are; see
`steering`. Whatever goes wrong in a policy, vLLM's own rules make that step; the fault is counted and logged, and after
20 of them the policy is not asked any more.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import vllm

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.mirror import Asked
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan, Policy
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.plugins.steering import Steering, steer
from dispatchgym.serving.plugins.versions import require_vllm
from dispatchgym.serving.plugins.vllm_view import WINDOW, Sight

require_vllm(vllm.__version__)

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402  (what it imports differs by version)
from vllm.v1.request import Request  # noqa: E402

log = logging.getLogger("dispatchgym.vllm")

STOCK = ("", "vllm")
MOST_FAULTS = 20
MOST_WAIT_S, POLL_S = 1.0, 0.001
NOTHING = Steering((), (), (), 0, 0, True)


@dataclass(frozen=True, slots=True)
class Options:
    """What `additional_config["dispatchgym"]` may hold; `policy` and `profile` also come from the environment.

    Attributes:
        policy: a scheduler by name, with constants behind pluses, or bundle:PATH; "" or "vllm" for vLLM's own rules.
        budget_ms: a decision that takes longer is a fault.
        profile: step times for policies that predict, a name or a file; see `dispatchgym simulate --help`.
        window: requests of the queue that the policy is shown.
    """

    policy: str = ""
    budget_ms: float = 20.0
    profile: str = "h200-8b"
    window: int = WINDOW

    @staticmethod
    def of(given: object) -> Options:
        """From vLLM's additional_config, then the environment.

        Raises:
            UsageError: an unknown key.
        """
        own = given.get("dispatchgym", {}) if isinstance(given, Mapping) else {}
        known = Options.__slots__
        for key in own:
            if key not in known:
                raise UsageError(f"additional_config: dispatchgym.{key} is unknown; there are {', '.join(known)}")
        env = {"policy": "DISPATCHGYM_POLICY", "profile": "DISPATCHGYM_PROFILE"}
        found = {key: os.environ[name] for key, name in env.items() if name in os.environ}
        return Options(**{**found, **own})


class LearnedScheduler(AsyncScheduler):  # type: ignore[misc]  # vLLM is not in the development environment
    """vLLM's scheduler, steered by a policy.

    Attributes:
        decisions: plans that the policy made.
        faults: steps that vLLM's own rules made instead, by cause: "error", "late".
        inexact: steps in which vLLM ran other tokens than the plan said, such as unequal pieces of several prompts.
        is_benched: the policy has failed too often.
        policy_s: seconds that the policy took.
    """

    # of vLLM's own scheduler
    running: list[Request]
    max_num_running_reqs: int
    max_num_scheduled_tokens: int
    scheduler_reserve_full_isl: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = Options.of(self.vllm_config.additional_config)
        self.clock, self.sleep = time.time, time.sleep
        self.decisions = self.inexact = 0
        self.faults: Counter[str] = Counter()
        self.is_benched = False
        self.policy_s = 0.0
        self._began: dict[int, float] = {}
        self._held: tuple[Plan, int] | None = None
        self._waited_from_s: float | None = None
        self._sight = Sight(self)
        self._policy = None if self.options.policy in STOCK else self._load(self.options.policy)
        if self._policy is not None:
            log.info("vLLM %s is scheduled by %s", vllm.__version__, self.options.policy)

    def _load(self, name: str) -> Policy:
        from dispatchgym.agents.export_targets import refuse_or_degrade
        from dispatchgym.serving.llm.schedulers import load_scheduler

        for loss in refuse_or_degrade(name, "vllm"):
            log.warning("%s: %s", name, loss)
        if self.scheduler_config.policy != "fcfs":
            raise UsageError("a policy of dispatchgym orders the queue itself: leave --scheduling-policy at fcfs")
        if len(self.kv_cache_config.kv_cache_groups) != 1 or self.num_spec_tokens:
            raise UsageError(
                "dispatchgym steers models with one kind of KV cache and without speculative decoding; "
                "unset DISPATCHGYM_POLICY for this one"
            )
        policy = load_scheduler(name).policy
        asked: Policy = Asked(policy) if isinstance(policy, CompiledPolicy) else policy
        config = EngineConfig(
            block_tokens=self.block_size, kv_blocks=self.kv_cache_manager.block_pool.num_gpu_blocks - 1,
            max_seqs=self.max_num_running_reqs, token_budget=self.max_num_scheduled_tokens, max_len=self.max_model_len,
            prefix_caching=self.kv_cache_manager.enable_caching,
        )  # fmt: skip
        asked.reset(EngineSpec(config, load_profile(self.options.profile), config.kv_blocks), 0)
        return asked

    def add_request(self, request: Request) -> None:
        known = request.request_id in self.requests
        super().add_request(request)
        if not known and self._policy is not None:
            self._sight.came(request, self.clock())
            if self._held is not None and "arrival" not in self._held[0].hold_through:
                self._held = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        began_s = self.clock()
        steering = None
        numbers: dict[int, Request] = {}
        if self._policy is not None and not self.is_benched and (self.running or self.waiting):
            numbers = self._numbers()
            steering = self._asked(began_s)
        out = (
            super().schedule(*args, **kwargs)
            if steering is None
            else self._steered(steering, numbers, began_s, args, kwargs)
        )
        if self._policy is not None and out.total_num_scheduled_tokens:
            self._began[id(out)] = began_s
            self._waited_from_s = None
        return out

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        if self._policy is None:
            return super().update_from_output(scheduler_output, model_runner_output)
        took_part = [self.requests[r] for r in scheduler_output.num_scheduled_tokens if r in self.requests]
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        finished = self._sight.finished
        now_s = self.clock()
        self._sight.stepped(took_part, self._began.pop(id(scheduler_output), now_s), now_s)
        if self._held is not None and self._sight.finished > finished and "finish" not in self._held[0].hold_through:
            self._held = None
        return outputs

    def _numbers(self) -> dict[int, Request]:
        """Who can be scheduled, by the numbers that policies know them by."""
        sight = self._sight
        return {sight[r.request_id].number: r for r in (*self.running, *self.waiting) if not self._is_ending(r)}

    @staticmethod
    def _is_ending(r: Request) -> bool:
        """Its last token is on its way, or one that was on its way when it was preempted."""
        coming = r.num_output_placeholders
        if r.num_computed_tokens == 0:
            return bool(coming > 0)
        return bool(coming > 0 and r.num_output_tokens + coming >= r.max_tokens)

    def _asked(self, now_s: float) -> Steering | None:
        """What the policy wants for the next step; None where it has nothing to say, or fails."""
        assert self._policy is not None
        try:
            running = [r for r in self.running if not self._is_ending(r)]
            waiting = [r for r in self.waiting if not self._is_ending(r)][: self.options.window]
            view = self._sight.view(running, waiting, now_s, getattr(self._policy, "texts", False))
            plan = self._held_plan(view)
            if plan is None:
                began = time.perf_counter()
                plan = self._policy.decide(view)
                took_s = time.perf_counter() - began
                self.policy_s += took_s
                self.decisions += 1
                if took_s * 1000.0 > self.options.budget_ms:
                    self._fault("late")
                    return None
                if not isinstance(plan, Plan):
                    raise TypeError(f"decide returned {type(plan).__name__}, not a Plan")
                decoding = set(view.running.id[view.running.decoding].tolist())
                if plan.hold_steps > 1 and all(r in decoding for r, _ in plan.grants):
                    self._held = (plan, plan.hold_steps - 1)
            if len(plan.grants) == 0 and plan.wait_until_s is not None and self._waits(plan.wait_until_s, view):
                return NOTHING
            steering = steer(plan, view)
            return steering if steering.running or steering.waiting else None
        except Exception:
            log.exception("policy %s failed", self.options.policy)
            self._fault("error")
            return None

    def _held_plan(self, view: EngineView) -> Plan | None:
        """The plan of an earlier step that says to go on, cut to those that still decode."""
        if self._held is None:
            return None
        plan, left = self._held
        running = view.running
        alive = set(running.id[running.decoding].tolist())
        grants = [(r, n) for r, n in plan.grants if r in alive]
        k = {r: i for i, r in enumerate(running.id.tolist())}
        held = [(int(running.computed[k[r]]) + 1, int(running.blocks[k[r]])) for r, _ in grants]
        need = sum(max(0, int(view.blocks_for(tokens)) - blocks) for tokens, blocks in held)
        if left == 0 or not grants or need > view.free_blocks:
            self._held = None
            return None
        self._held = (plan, left - 1)
        return Plan(grants=grants)

    def _waits(self, until_s: float, view: EngineView) -> bool:
        """Make no step yet, for a second in a row at most."""
        if self._waited_from_s is None:
            self._waited_from_s = view.now_s
        left_s = min(until_s, self._waited_from_s + MOST_WAIT_S) - view.now_s
        if left_s > 0:
            self.sleep(min(left_s, POLL_S))
        return left_s > 0

    def _fault(self, cause: str) -> None:
        self.faults[cause] += 1
        self._held = None
        if self.faults.total() >= MOST_FAULTS:
            self.is_benched = True
            log.error("policy %s is not asked any more: %s", self.options.policy, dict(self.faults))

    def _steered(self, steering: Steering, numbers: dict[int, Request], now_s: float, args: Any, kwargs: Any) -> Any:
        """vLLM's own step with only these on its lists; afterwards everybody is back in place."""
        for number in steering.preempt:
            request = numbers[number]
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            self._sight.requeued(request, now_s)
        all_running, all_waiting = list(self.running), list(self.waiting)
        config = self.scheduler_config
        before = (self.max_num_scheduled_tokens, config.long_prefill_token_threshold, self.scheduler_reserve_full_isl)
        room = self.max_num_running_reqs
        chosen = [numbers[n] for n in steering.running]
        try:
            self.running = list(chosen)
            self.waiting.clear()
            self.waiting.extend(numbers[n] for n in steering.waiting)
            self.max_num_scheduled_tokens = min(steering.budget, before[0])
            config.long_prefill_token_threshold = steering.piece
            self.scheduler_reserve_full_isl = False
            self.max_num_running_reqs = room - (len(all_running) - len(chosen))
            out = super().schedule(*args, **kwargs)
        finally:
            self.max_num_scheduled_tokens, config.long_prefill_token_threshold, self.scheduler_reserve_full_isl = before
            self.max_num_running_reqs = room
            self._put_back(all_running, all_waiting)
        if not steering.exact:
            self.inexact += 1
        return out

    def _put_back(self, all_running: list[Request], all_waiting: list[Request]) -> None:
        """Everybody on a list again, in the order of before; who changed lists meanwhile stays where it went."""
        now_running, now_waiting = list(self.running), list(self.waiting)
        ran, queued = set(now_running), set(now_waiting)
        old, waited = set(all_running), set(all_waiting)
        preempted = [r for r in now_waiting if r in old]
        gone = set(preempted)
        self.running = [r for r in all_running if r not in gone] + [r for r in now_running if r not in old]
        self.waiting.clear()
        self.waiting.extend(preempted)
        self.waiting.extend(r for r in all_waiting if r not in ran)
        self.waiting.extend(r for r in now_waiting if r in queued - old - waited)
