"""An engine under a policy that is asked for a plan: view, plan, step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.apply import FLOATS, IDLE, INTS, OVERSLEPT, REPAIRS, apply, gather, queue
from dispatchgym.envs.llm.batching import BatchingRule, rescue
from dispatchgym.envs.llm.executor import Executor, SimulatedExecutor, batch_of
from dispatchgym.envs.llm.kernel import arrive, begin, finish_step, hold_on, interrupt_step, next_epoch
from dispatchgym.envs.llm.ledger import pin, unpin
from dispatchgym.envs.llm.policy import (
    CompiledPolicy,
    EngineSpec,
    EngineView,
    Oracle,
    Plan,
    Policy,
    RequestTable,
    Texts,
)
from dispatchgym.envs.llm.setup import with_more_log
from dispatchgym.envs.llm.state import DONE, PAUSE, RECOMPUTE, SWAP, State

_DEFAULT = BatchingRule().packed()
_HOW = {"recompute": RECOMPUTE, "swap": SWAP, "pause": PAUSE}
_NOBODY = np.zeros(0, np.int32)
_NO_GRANTS = np.zeros((0, 2), np.int64)
_MOST = 2**31 - 1


class Engine:
    """Asks a policy for a plan at every step boundary, and carries it out.

    Attributes:
        state: the arrays; nobody but the engine writes them.
        decisions: plans asked for.
        policy_s: CPU seconds that the policy took.
    """

    def __init__(
        self,
        state: State,
        policy: Policy | CompiledPolicy,
        spec: EngineSpec,
        *,
        executor: Executor | None = None,
        strict: bool = False,
    ) -> None:
        self.state = state
        self.policy = policy
        self.spec = spec
        self.strict = strict
        self.decisions = 0
        self.policy_s = 0.0
        self._executor = executor
        self._simulated = SimulatedExecutor(state, spec.profile.segments, spec.profile.pause_s)
        self._counts = np.zeros(len(REPAIRS), np.int64)
        self._first = np.full(3, -1, np.int64)
        self._interrupted = False
        self._hash_tokens = int(state.eng["hash_ratio"][0] * state.eng["block_tokens"][0])
        self._hashes, self._first_hash = state.hashes, state.req["hash_at"].copy()
        prompt_hashes = -(-state.req["prompt"].astype(np.int64) // self._hash_tokens)
        self._hash_count = np.minimum(state.req["hash_count"], prompt_hashes).astype(np.int32)

    @property
    def repairs(self) -> dict[str, int]:
        """What had to be changed in plans so far: kind -> times."""
        return {name: int(count) for name, count in zip(REPAIRS, self._counts, strict=True) if count}

    def run(self) -> None:
        """Run until every request has ended."""
        while self.step():
            pass

    def step(self) -> bool:
        """One decision and what follows from it; False when no request is left."""
        self._make_room_for_logs()
        if next_epoch(self.state) == DONE:
            return False
        if isinstance(self.policy, CompiledPolicy):
            begin(self.state)
            self.policy.fill(self.state)
            if self.state.eng["batch"][0] == 0:
                rescue(self.state)
            self.decisions += 1
            self._make_step(False)
        else:
            self.carry_out(self._ask())
        return True

    def carry_out(self, plan: Plan) -> None:
        """Follow a plan: wait, or make the next step, or several.

        Raises:
            InvalidPlanError: the plan is malformed; or, with `strict`, had to be repaired.
        """
        s, e = self.state, self.state.eng[0]
        orders = _orders(plan, self._name())
        for p in plan.pins:
            if not 0 <= p.request < int(e["next"]) or p.tokens < 0:
                raise InvalidPlanError(f"{self._name()}: pin of {p.tokens} tokens of request {p.request}")
            if p.tokens:
                pin(s, p.request, p.tokens, float(e["now"]) + p.seconds)
            else:
                unpin(s, p.request)
        self._interrupted = False
        self._first[:] = -1
        begin(s)
        if plan.wait_until_s is not None and len(plan.grants) == 0 and self._wait(plan):
            return
        apply(s, *orders, plan.interruptible, _DEFAULT, self._counts, self._first)
        if self.strict and self._first[0] >= 0:
            kind, request, tokens = (int(x) for x in self._first)
            raise InvalidPlanError(
                f"{self._name()}: {REPAIRS[kind]}"
                + (f": request {request}, {tokens} tokens" if kind != IDLE else "")
                + "; without strict the engine repairs this"
            )
        if e["batch"] == 0:
            return
        if plan.hold_steps > 1 and e["prefills"] == 0 and self._executor is None:
            hold_on(s, plan.hold_steps, "arrival" in plan.hold_through, "finish" in plan.hold_through)
            return
        self._make_step(plan.interruptible)

    def _make_step(self, interruptible: bool) -> None:
        s, e = self.state, self.state.eng[0]
        interrupt_s = np.inf
        if interruptible and e["decodes"] == 0 and e["next"] < e["num"]:
            interrupt_s = float(s.req["arrival_s"][e["next"]] - e["now"])
        if self._executor is None:
            result = self._simulated.run(None, interrupt_s)
        else:
            result = self._executor.run(batch_of(s), interrupt_s)
            rows = s.batch[: e["batch"]]
            rows["emitted"], rows["stopped"] = result.emitted, result.stopped
        if result.segments_done is not None:
            interrupt_step(s, result.duration_s, result.left_s, result.segments_done)
            self._interrupted = True
        else:
            finish_step(s, result.duration_s)

    def _wait(self, plan: Plan) -> bool:
        """Let time pass as the plan says; False if there has been enough of that."""
        s, e = self.state, self.state.eng[0]
        assert plan.wait_until_s is not None
        left = self.spec.config.max_wait_s - float(e["waited_s"])
        until = min(float(plan.wait_until_s), float(e["now"]) + left)
        if not until > e["now"]:
            if plan.wait_until_s > e["now"]:
                self._counts[OVERSLEPT] += 1
            return False
        while True:
            upcoming = float(s.req["arrival_s"][e["next"]]) if e["next"] < e["num"] else np.inf
            to = min(until, upcoming)
            e["waited_s"] += to - e["now"]
            e["now"] = to
            if to >= until:
                return True
            arrive(s)
            if plan.wake_on_arrival or (plan.wake_depth and e["waiting"] >= plan.wake_depth):
                return True

    def _ask(self) -> Plan:
        assert not isinstance(self.policy, CompiledPolicy)
        view = self.view()
        before = time.process_time()
        try:
            plan = self.policy.decide(view)
        except Exception as error:
            raise InvalidPlanError(f"{self._name()} raised {type(error).__name__}: {error}") from error
        self.policy_s += time.process_time() - before
        self.decisions += 1
        if not isinstance(plan, Plan):
            raise InvalidPlanError(f"{self._name()} returned {type(plan).__name__}, not a Plan")
        return plan

    def view(self) -> EngineView:
        """What the policy sees now."""
        s, e = self.state, self.state.eng[0]
        running = s.run[: e["running"]].astype(np.int64)
        waiting = np.empty(e["waiting"], np.int64)
        queue(s, waiting)
        oracle = None
        if self.policy.oracle:
            output = s.req["output"]
            oracle = Oracle(output[running].astype(np.int64), output[waiting].astype(np.int64))
        window, known = len(s.history), int(e["finished"])
        history = np.roll(s.history, -(known % window)) if known > window else s.history[:known].copy()
        history.flags.writeable = False
        return EngineView(
            now_s=float(e["now"]),
            step=int(e["steps"]),
            running=_table(s, running),
            waiting=_table(s, waiting),
            free_blocks=int(e["free"]),
            kv_blocks=int(e["kv_blocks"]),
            block_tokens=int(e["block_tokens"]),
            free_seqs=int(e["slots"]),
            token_budget=int(e["token_budget"]),
            host_free=int(e["host_free"]),
            history=history,
            finished=known,
            interrupted=self._interrupted,
            texts=Texts(self._hashes, self._first_hash, self._hash_count, int(e["next"]), self._hash_tokens),
            oracle=oracle,
        )

    def _name(self) -> str:
        return f"policy {self.policy.name!r}, step {int(self.state.eng['steps'][0])}"

    def _make_room_for_logs(self) -> None:
        s, e = self.state, self.state.eng[0]
        config = self.spec.config
        full = e["log_steps"] and e["logged"] + 1 >= len(s.log)
        if e["log_tokens"]:
            most = config.max_seqs * (1 + config.max_spec)
            full = full or e["tokens_logged"] + most > len(s.token_request)
        if full:
            self.state = with_more_log(s)
            self._simulated.state = self.state


def _orders(plan: Plan, name: str) -> tuple[npt.NDArray[Any], ...]:
    """A plan's lists as the arrays that `apply` takes."""
    try:
        grants = np.asarray(plan.grants, np.int64).reshape(-1, 2) if len(plan.grants) else _NO_GRANTS
        preempted = np.array([r for r, _ in plan.preempt], np.int32)
        how = np.array([_HOW[h] for _, h in plan.preempt], np.int32)
        drop = np.asarray(plan.drop, np.int32) if len(plan.drop) else _NOBODY
        victims = np.asarray(plan.victims, np.int32) if len(plan.victims) else _NOBODY
        ids = np.minimum(np.maximum(grants[:, 0], -1), _MOST).astype(np.int32)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidPlanError(f"{name}: malformed plan: {type(error).__name__}: {error}") from None
    return drop, preempted, how, ids, np.ascontiguousarray(grants[:, 1]), victims


def _table(s: State, ids: npt.NDArray[np.int64]) -> RequestTable:
    """Copies of what a policy may know about these requests."""
    ints, floats = np.empty((INTS, len(ids)), np.int64), np.empty((FLOATS, len(ids)))
    gather(s, ids, ints, floats)
    for array in (ids, ints, floats):
        array.flags.writeable = False
    return RequestTable(ids, *floats, *ints)
