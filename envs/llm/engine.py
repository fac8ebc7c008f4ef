"""An engine under a policy that is asked for a plan: view, plan, step."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidPlanError, UsageError
from dispatchgym.envs.llm.apply import FLOATS, IDLE, INTS, OVERSLEPT, REPAIRS, apply, gather, queue
from dispatchgym.envs.llm.arrivals import arrive, begin, enter, next_epoch
from dispatchgym.envs.llm.batching import BatchingRule, rescue
from dispatchgym.envs.llm.executor import Attentive, Executor, SimulatedExecutor, batch_of
from dispatchgym.envs.llm.grants import NO_ORDER, NOBODY, end, grant
from dispatchgym.envs.llm.jumps import hold_on
from dispatchgym.envs.llm.ledger import name_text, pin, unpin
from dispatchgym.envs.llm.policy import (
    CompiledPolicy,
    EngineSpec,
    EngineView,
    Oracle,
    Plan,
    Policy,
    RequestTable,
    Texts,
    is_compiled,
)
from dispatchgym.envs.llm.record import ABORTED
from dispatchgym.envs.llm.setup import fresh_requests, with_more_log, with_request
from dispatchgym.envs.llm.state import (
    DONE,
    ENDED,
    I32,
    I64,
    NONE,
    PAUSE,
    RECOMPUTE,
    RUNNING,
    SWAP,
    WAITING,
    State,
)
from dispatchgym.envs.llm.steps import finish_step, interrupt_step

_DEFAULT = BatchingRule().packed()
_HOW = {"recompute": RECOMPUTE, "swap": SWAP, "pause": PAUSE}
_NOBODY = np.zeros(0, np.int32)
_NO_GRANTS = np.zeros((0, 2), np.int64)
_MOST = 2**31 - 1


class Engine:
    """Asks a policy for a plan at every step boundary, and carries it out.

    With a `clock` it serves live: time comes from there, requests from `submit`, and a plan that waits returns at once,
    for the caller to sleep until `wait_until_s` or the next request. There, `has_arrived` says in the middle of a step
    whether a request has come that has not been submitted yet: it stops interruptible steps on an `Attentive` executor.

    Attributes:
        state: the arrays; nobody but the engine writes them.
        wait_until_s: the time that the last plan waits for, -inf if it made a step.
        interrupted: the last step was stopped in the middle.
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
        clock: Callable[[], float] | None = None,
        has_arrived: Callable[[], bool] | None = None,
    ) -> None:
        self.state = state
        self._clock = clock
        self._has_arrived = has_arrived
        self._attentive = executor if isinstance(executor, Attentive) else None
        self._free_ids: list[int] = []
        self._serial = int(state.eng["num"][0])
        self._stepped_s = -np.inf
        self.wait_until_s = -np.inf
        self.policy = policy
        self.spec = spec
        self.strict = strict
        self.decisions = 0
        self.policy_s = 0.0
        self._executor = executor
        self._simulated = SimulatedExecutor(state, spec.profile.segments, spec.profile.pause_s)
        self._counts = np.zeros(len(REPAIRS), np.int64)
        self._first = np.full(3, -1, np.int64)
        self.interrupted = False
        self._texts: dict[int, I64] = {}

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
        if self._clock is not None:
            self.state.eng["now"][0] = max(float(self.state.eng["now"][0]), self._clock())
        if next_epoch(self.state) == DONE:
            return False
        if is_compiled(self.policy):
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
        self.interrupted = False
        self.wait_until_s = -np.inf
        self._first[:] = -1
        begin(s)
        if plan.wait_until_s is not None and len(plan.grants) == 0 and self._wait(plan):
            return
        drop, preempted, how, ids, amounts, victims = orders
        late = plan.interruptible
        apply(s, drop, preempted, how, ids, amounts, victims, late, _DEFAULT, self._counts, self._first)
        if self.strict and self._first[0] >= 0:
            kind, request, tokens = (int(x) for x in self._first)
            raise InvalidPlanError(
                f"{self._name()}: {REPAIRS[kind]}"
                + (f": request {request}, {tokens} tokens" if kind != IDLE else "")
                + "; without strict the engine repairs this"
            )
        if e["batch"] == 0:
            return
        if plan.hold_steps > 1 and e["prefills"] == 0 and self._clock is None:
            through_arrival, through_finish = "arrival" in plan.hold_through, "finish" in plan.hold_through
            if self._executor is None:
                hold_on(s, plan.hold_steps, through_arrival, through_finish)
            else:
                self._hold_on(plan.hold_steps, through_arrival, through_finish)
            return
        self._make_step(plan.interruptible)

    def _hold_on(self, steps: int, through_arrival: bool, through_finish: bool) -> None:
        """What the kernel of that name does, one step at a time on the executor."""
        rows = self.state.batch[: self.state.eng["batch"][0]]
        members, tokens = rows["request"].copy(), rows["tokens"].copy()
        for made in range(1, steps + 1):
            before = int(self.state.eng["ended"][0])
            self._make_step(False)
            s, e = self.state, self.state.eng[0]
            if made == steps or (e["ended"] > before and not through_finish):
                return
            if not through_arrival and e["next"] < e["num"] and s.req["arrival_s"][e["next"]] <= e["now"]:
                return
            left = s.req["state"][members] == RUNNING
            members, tokens = members[left], tokens[left]
            q = s.req[members]
            most = np.minimum(tokens, q["max_new"] - q["generated"])
            need = -(-(q["computed"] + most) // int(e["block_tokens"])) - q["blocks"]
            if len(members) == 0 or np.maximum(need, 0).sum() > e["free"]:
                return
            self._make_room_for_logs()
            s, e = self.state, self.state.eng[0]
            begin(s)
            for r, n in zip(members.tolist(), tokens.tolist(), strict=True):
                grant(s, r, n, NOBODY, NO_ORDER)
            e["held"] = 1

    def _make_step(self, interruptible: bool) -> None:
        s, e = self.state, self.state.eng[0]
        may_stop = interruptible and e["decodes"] == 0
        interrupt_s = np.inf
        if may_stop and e["next"] < e["num"]:
            interrupt_s = float(s.req["arrival_s"][e["next"]] - e["now"])
        if self._executor is None:
            result = self._simulated.run(None, interrupt_s)
        else:
            if may_stop and self._has_arrived is not None and self._attentive is not None:
                result = self._attentive.run_until(batch_of(s), self._has_arrived)
            else:
                result = self._executor.run(batch_of(s), interrupt_s)
            rows = s.batch[: e["batch"]]
            rows["emitted"], rows["stopped"] = result.emitted, result.stopped
        self.interrupted = result.segments_done is not None
        if result.segments_done is not None:
            interrupt_step(s, result.duration_s, result.left_s, result.segments_done)
        else:
            finish_step(s, result.duration_s)
        self._stepped_s = float(e["now"])

    def _wait(self, plan: Plan) -> bool:
        """Let time pass as the plan says; False if there has been enough of that."""
        s, e = self.state, self.state.eng[0]
        assert plan.wait_until_s is not None
        if self._clock is not None and e["waiting"]:
            since = max(self._stepped_s, float(s.req["queued_s"][e["head"]]))
            e["waited_s"] = max(0.0, float(e["now"]) - since)
        left = self.spec.config.max_wait_s - float(e["waited_s"])
        until = min(float(plan.wait_until_s), float(e["now"]) + left)
        self.wait_until_s = until if self._clock is not None else -np.inf
        if self._clock is not None and until > e["now"]:
            return True
        if not until > e["now"]:
            if plan.wait_until_s > e["now"]:
                self._counts[OVERSLEPT] += 1
            return False
        while True:
            upcoming = float(s.req["arrival_s"][e["next"]]) if e["next"] < e["num"] else np.inf
            to = min(until, upcoming)
            e["waited_s"] += to - e["now"]
            e["now"], e["plain_s"] = to, 0.0
            if to >= until:
                return True
            arrive(s)
            if plan.wake_on_arrival or (plan.wake_depth and e["waiting"] >= plan.wake_depth):
                return True

    def _ask(self) -> Plan:
        policy = cast(Policy, self.policy)
        view = self.view()
        before = time.process_time()
        try:
            plan = policy.decide(view)
        except Exception as error:
            raise InvalidPlanError(f"{self._name()} raised {type(error).__name__}: {error}") from error
        self.policy_s += time.process_time() - before
        self.decisions += 1
        if not isinstance(plan, Plan):
            raise InvalidPlanError(f"{self._name()} returned {type(plan).__name__}, not a Plan")
        return plan

    def submit(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        hashes: I64 | None = None,
        grows: bool = False,
        arrived_s: float = np.nan,
        **columns: float,
    ) -> int:
        """A request comes now; returns its number, which is free again after `release`.

        Args:
            hashes: of the prompt's blocks, of as many tokens as the engine's workload says; see Workload.
            grows: there will be hashes of the output, see `name_text`; those of the prompt are of whole blocks.
            arrived_s: when it came, by the engine's clock, if that is some time ago; nan for now.
            columns: ttft_slo_s, tpot_slo_s, priority, tenant, session, program.

        Raises:
            UsageError: lengths below 1, or longer than the engine will ever hold.
        """
        if prompt_tokens < 1 or max_new_tokens < 1:
            raise UsageError(f"request of {prompt_tokens} prompt and {max_new_tokens} output tokens: both must be >= 1")
        e = self.state.eng[0]
        row = self.state.table.shape[1] * int(e["block_tokens"])
        longest = min(int(e["max_len"]), row, int(e["kv_blocks"]) * int(e["block_tokens"]))
        if prompt_tokens + max_new_tokens + self.spec.config.max_spec > longest:
            raise UsageError(
                f"request of {prompt_tokens} + {max_new_tokens} tokens: this engine holds at most {longest} at a time"
            )
        own = np.zeros(0, np.int64) if hashes is None else np.asarray(hashes, np.int64)
        size = int(e["hash_ratio"] * e["block_tokens"])
        hashed = min(len(own) * size, prompt_tokens)
        if grows:
            own = np.concatenate([own, np.zeros((prompt_tokens + max_new_tokens) // size - len(own), np.int64)])
        self.state = s = with_request(self.state, own)
        self._simulated.state = s
        e = s.eng[0]
        if self._free_ids:
            r = self._free_ids.pop()
            e["ended"] -= 1
        else:
            r = int(e["num"])
            e["num"] += 1
            e["next"] += 1
        s.req[r : r + 1] = fresh_requests(1)
        q = s.req[r]
        q["prompt"], q["output"], q["max_new"] = prompt_tokens, max_new_tokens, max_new_tokens
        q["hash_at"], q["hash_count"], q["hashed"] = int(e["hashes"]) - len(own), len(own), hashed
        q["serial"] = self._serial
        self._serial += 1
        now = float(e["now"]) if self._clock is None else self._clock()
        q["arrival_s"] = now if np.isnan(arrived_s) else min(arrived_s, now)
        q["ttft_slo_s"] = q["tpot_slo_s"] = np.inf
        for name in ("session", "program"):
            q[name] = NONE
        for name, value in columns.items():
            if name not in ("ttft_slo_s", "tpot_slo_s", "priority", "tenant", "session", "program"):
                raise UsageError(f"request: {name} is not something a request has")
            q[name] = value
        enter(s, r)
        return r

    def name_text(self, request: int, hashes: I64) -> None:
        """The next hashes of a request that grows, output included: what it has computed of them, others can find.

        To be called once the text of whole blocks is known whose KV is there; of a request that has ended too, until
        it is released.

        Raises:
            UsageError: more hashes than its prompt and longest output have whole blocks.
        """
        s, q = self.state, self.state.req[request]
        size = int(s.eng["hash_ratio"][0] * s.eng["block_tokens"][0])
        known = int(q["hashed"]) // size
        if known + len(hashes) > int(q["hash_count"]):
            raise UsageError(
                f"request {request}: {known} + {len(hashes)} hashes, and room for {int(q['hash_count'])}; it grows "
                "only if it was submitted so"
            )
        first = int(q["hash_at"]) + known
        s.hashes[first : first + len(hashes)] = hashes
        pinned, until_s = int(q["pinned"]) * int(s.eng["block_tokens"][0]), float(q["pinned_until_s"])
        unpin(s, request)  # pins are found by keys, too
        name_text(s, request, (known + len(hashes)) * size)
        if pinned:
            pin(s, request, pinned, until_s)

    def abort(self, request: int) -> None:
        """The client is gone: the request ends, and gives back what it holds."""
        if self.state.req["state"][request] in (WAITING, RUNNING):
            end(self.state, request, ABORTED)

    def release(self, request: int) -> None:
        """The number of a request that has ended may be given to another."""
        if self.state.req["state"][request] != ENDED:
            raise UsageError(f"request {request} has not ended")
        unpin(self.state, request)
        self._texts.pop(request, None)
        self._free_ids.append(request)

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
        texts = None
        if getattr(self.policy, "texts", False):
            texts = self._read_texts(np.concatenate([running, waiting]))
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
            max_preemptions=int(e["max_preemptions"]),
            history=history,
            finished=known,
            interrupted=self.interrupted,
            texts=texts,
            oracle=oracle,
            plain_s=float(e["plain_s"]),
        )

    def _read_texts(self, requests: I64) -> Texts:
        s, size = self.state, int(self.state.eng["hash_ratio"][0] * self.state.eng["block_tokens"][0])
        known, self._texts = self._texts, {}
        for r in requests.tolist():
            if r not in known:
                row = s.req[r]
                first = int(row["hash_at"])
                count = -(-min(int(row["hashed"]), int(row["prompt"])) // size)  # those of the output left out
                known[r] = s.hashes[first : first + count].copy()
                known[r].flags.writeable = False
            self._texts[r] = known[r]
        return Texts(MappingProxyType(self._texts), size)

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


def _orders(plan: Plan, name: str) -> tuple[I32, I32, I32, I32, I64, I32]:
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
