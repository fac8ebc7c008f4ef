"""The scheduler's seat: who decides is asked within a budget, replaced where it fails, and exchanged between steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan, Policy
from dispatchgym.serving.llm.schedulers import Loaded, start
from dispatchgym.solvers.llm.vllm import Vllm

log = logging.getLogger(__name__)

Cause = Literal["error", "late", "busy", "malformed", "benched"]

FORGIVEN_AFTER = 1000
"""Good decisions in a row that make earlier faults forgotten."""


class _Fault(Exception):
    """The policy has no plan for this decision."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause: Cause = cause


@dataclass(slots=True)
class _Question:
    view: EngineView
    is_answered: threading.Event = field(default_factory=threading.Event)
    plan: object = None
    error: BaseException | None = None


class _Asked:
    """A policy as the engine sees it: `decide` raises `_Fault` when it is late or fails.

    It is asked in a thread of its own, which is a daemon: a policy that never returns keeps nobody from ending. A quick
    one is asked at once, since waking a thread takes as long as many a decision; once it is late, it gets a thread for
    a while.
    """

    def __init__(self, policy: Policy, budget_s: float, is_quick: bool) -> None:
        self.policy = policy
        self.name = policy.name
        self.oracle = policy.oracle
        self.texts = getattr(policy, "texts", False)
        self.budget_s = budget_s
        self.seconds = 0.0
        self.plan: Plan | None = None
        self.cause: Cause | None = None
        self._apart = 0.0 if is_quick else np.inf  # decisions still to be made in the thread
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._open: _Question | None = None
        self._has_thread = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.policy.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        self.plan, self.cause = None, None
        if self._open is not None and not self._open.is_answered.is_set():
            return self._fail("busy")
        question = _Question(view)
        begin = time.perf_counter()
        if self._apart:
            answered = self._hand_over(question)
        else:
            self._answer(question)
            answered = time.perf_counter() - begin <= self.budget_s
        self.seconds = time.perf_counter() - begin
        if not answered:
            self._apart = max(self._apart, FORGIVEN_AFTER)
            return self._fail("late")
        if question.error is not None:
            log.error("scheduler %s failed", self.name, exc_info=question.error)
            return self._fail("error")
        if not is_well_formed(question.plan):
            return self._fail("malformed")
        assert isinstance(question.plan, Plan)
        self.plan = question.plan
        return question.plan

    def close(self) -> None:
        self._questions.put(None)

    def _fail(self, cause: Cause) -> Plan:
        self.cause = cause
        raise _Fault(cause)

    def _hand_over(self, question: _Question) -> bool:
        """Ask in the thread; False if there is no answer in time."""
        self._apart -= 1
        if not self._has_thread:
            self._has_thread = True
            threading.Thread(target=self._answer_all, name=f"policy {self.name}", daemon=True).start()
        self._open = question
        self._questions.put(question)
        return question.is_answered.wait(self.budget_s)

    def _answer_all(self) -> None:
        while (question := self._questions.get()) is not None:
            self._answer(question)

    def _answer(self, question: _Question) -> None:
        try:
            question.plan = self.policy.decide(question.view)
        except BaseException as error:  # whatever it is, the engine hears of it
            question.error = error
        question.is_answered.set()


class Seat:
    """Who decides about an engine's steps.

    Attributes:
        loaded: the scheduler that was installed last.
        faults: decisions that the fallback rule made instead, by cause.
        is_benched: it has failed too often and is not asked until another is installed.
        seconds: what the last decision took; 0 for rules that run inside the engine.
        last_fault: why the fallback rule made the last decision; None if it did not.

    Args:
        engine: whose steps.
        loaded: the first scheduler.
        budget_s: how long a policy may take for a decision.
        most_faults: after so many it is benched, unless `FORGIVEN_AFTER` good decisions in a row came in between.
    """

    def __init__(self, engine: Engine, loaded: Loaded, budget_s: float, most_faults: int) -> None:
        self.engine = engine
        self.budget_s = budget_s
        self.most_faults = most_faults
        self.faults: Counter[str] = Counter()
        self.last_fault: Cause | None = None
        self._asked: _Asked | None = None
        self._last = Vllm()
        self.install(loaded)

    def install(self, loaded: Loaded) -> None:
        """From the next step on this one decides; requests stay where they are."""
        if self._asked is not None:
            self._asked.close()
        self.loaded = loaded
        self.is_benched = False
        self._recent, self._good = 0, 0
        self.seconds = 0.0
        start(loaded.policy, self.engine)
        start(loaded.fallback, self.engine)
        if isinstance(loaded.policy, CompiledPolicy):
            self._asked, self.engine.policy = None, loaded.policy
        else:
            self._asked = _Asked(loaded.policy, self.budget_s, loaded.is_quick)
            self.engine.policy = self._asked

    @property
    def plan(self) -> Plan | None:
        """What the policy ordered for the last step; None where a rule inside the engine decided."""
        return self._asked.plan if self._asked is not None and not self.is_benched else None

    def step(self) -> bool:
        """One decision and what follows from it; False when no request is left.

        Raises:
            Exception: whatever the executor raises; what the policy does wrong is answered by the fallback rule.
        """
        self.last_fault = None
        if self._asked is None:
            return self.engine.step()
        if self.is_benched:
            self.last_fault = "benched"
            self.faults["benched"] += 1
            return self._stand_in(self._asked)
        try:
            went_on = self.engine.step()
        except InvalidPlanError:  # raised before anything has changed
            self.seconds = self._asked.seconds
            self._count(self._asked.cause or "malformed")
            self._asked.plan = None
            return self._stand_in(self._asked)
        self.seconds = self._asked.seconds
        self._good += 1
        if self._good == FORGIVEN_AFTER:
            self._recent = 0
        return went_on

    def _stand_in(self, asked: _Asked) -> bool:
        """A step by the fallback rule; by one that runs inside the engine, and cannot fail, if that has no plan."""
        self.engine.policy = self.loaded.fallback
        try:
            return self.engine.step()
        except InvalidPlanError:
            log.exception("the fallback rule of scheduler %s failed", self.loaded.name)
            self.engine.policy = self._last
            return self.engine.step()
        finally:
            self.engine.policy = asked

    def close(self) -> None:
        """End the policy's thread."""
        if self._asked is not None:
            self._asked.close()

    def _count(self, cause: Cause) -> None:
        self.last_fault = cause
        self.faults[cause] += 1
        self._recent, self._good = self._recent + 1, 0
        if self._recent >= self.most_faults:
            self.is_benched = True
            log.error(
                "scheduler %s is benched after %d faults, the last one %s; %s decides until another is installed",
                self.loaded.name, self._recent, cause, self.loaded.fallback.name,
            )  # fmt: skip


def is_well_formed(plan: object) -> bool:
    """Every part of a plan is of its kind, and every number is one."""
    if not isinstance(plan, Plan):
        return False
    try:
        wait = plan.wait_until_s
        checks: tuple[Callable[[], bool], ...] = (
            lambda: wait is None or bool(np.isfinite(float(wait))),
            lambda: _whole(plan.grants, 2) and _whole(plan.victims, 1) and _whole(plan.drop, 1),
            lambda: all(how in ("recompute", "swap", "pause") for _, how in plan.preempt),
            lambda: _whole([request for request, _ in plan.preempt], 1),
            lambda: _whole([(pin.request, pin.tokens) for pin in plan.pins], 2),
            lambda: all(float(pin.seconds) >= 0 for pin in plan.pins),
            lambda: _whole([plan.hold_steps, plan.wake_depth], 1),
            lambda: isinstance(plan.hold_through, frozenset),
        )
        return all(check() for check in checks)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False


def _whole(numbers: object, width: int) -> bool:
    """An empty sequence, or whole numbers of shape (n,) or (n, width)."""
    array = np.asarray(numbers)
    if array.size == 0:
        return True
    return array.dtype.kind in "iu" and (array.ndim == 1 if width == 1 else array.shape[1:] == (width,))
