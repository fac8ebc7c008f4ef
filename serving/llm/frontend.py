"""Between HTTP and the engine: who waits for what, how much may wait, and what happens when the engine goes down.

Lives in one event loop. A sequence is queued until the engine has scheduled it for the first time; those that are
queued survive the engine, those that run fail with it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from dispatchgym.envs.api import DispatchGymError
from dispatchgym.serving.llm.engine_host import EngineHost
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.messages import (
    Cancel,
    Failed,
    FromEngine,
    Ready,
    Refused,
    Step,
    Submit,
    Switch,
    Switched,
)
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.sequences import (
    BusyError,
    EngineLostError,
    Group,
    Limits,
    Sequence,
    SwitchError,
    UnavailableError,
    Wanted,
)
from dispatchgym.serving.llm.texts import block_hashes
from dispatchgym.serving.wire import RequestError

log = logging.getLogger(__name__)

MOST_LIVES = 5
"""Engines in a row that may go down without having finished a sequence."""
MOST_TRIES = 3
"""Engines that may go down with a sequence in their queue before that is held against the sequence."""
RATE_OVER = 64
"""Finished sequences that the guess of the queue's pace is made from."""


class Frontend:
    """Asks an engine on behalf of many. Use it as `async with`.

    Attributes:
        ready: the engine's limits and scheduler; None until it has been built once.
        failed: why the engine cannot be built; "" while it can.
        is_up: the engine takes requests now.
        is_draining: nothing new is let in.
        last: the engine's last step.
        history: schedulers in the order in which they were installed.
        has_settled: the first engine is ready, or never will be. has_failed: it is given up.
    """

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        metrics: LlmMetrics,
        clock: Callable[[], float],
        *,
        in_thread: bool = False,
    ) -> None:
        self.recipe = recipe
        self.limits = limits
        self.metrics = metrics
        self.clock = clock
        self.ready: Ready | None = None
        self.failed = ""
        self.is_up = False
        self.is_draining = False
        self.last: Step | None = None
        self.history: list[str] = []
        self.has_settled = asyncio.Event()
        self.has_failed = asyncio.Event()
        self._in_thread = in_thread
        self._keys = itertools.count(1)
        self._tickets = itertools.count(1)
        self._sequences: dict[int, Sequence] = {}
        self._waiting = 0
        self._waiting_tokens = 0
        self._switches: dict[int, asyncio.Future[Switched]] = {}
        self._finishes: deque[float] = deque(maxlen=RATE_OVER)
        self._number = 0  # of the engine at hand
        self._heard_s = 0.0  # when the engine said something, or was given something to do
        self._fruitless = 0  # engines in a row that finished nothing
        self._host: EngineHost | None = None
        self._restart: asyncio.Task[None] | None = None
        self._is_closed = False
        self._secret = secrets.token_bytes(32)

    # --- its life ---

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._start()
        self._watch = asyncio.create_task(self._watch_over())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._watch.cancel()
        if self._restart is not None:
            self._restart.cancel()
        if self._host is not None:
            if self.ready is None:
                self._host.kill()  # still loading: nothing is lost
            await asyncio.to_thread(self._host.close)
        self._end_all(self._sequences.values(), UnavailableError("the server has ended"))

    @property
    def engine_pid(self) -> int | None:
        """Of the engine's process, if it has one."""
        return None if self._host is None else self._host.pid

    @property
    def sequences(self) -> Iterable[Sequence]:
        """Those that have not ended, in order of arrival."""
        return self._sequences.values()

    @property
    def num_waiting(self) -> int:
        """Sequences that have not been scheduled yet."""
        return self._waiting

    def _start(self) -> None:
        number = self._number = self._number + 1

        def deliver(message: FromEngine | None) -> None:
            with suppress(RuntimeError):  # the event loop has ended before the engine
                self._loop.call_soon_threadsafe(self._hear, number, message)

        self._host = EngineHost(self.recipe, deliver, in_thread=self._in_thread)

    def _hear(self, number: int, message: FromEngine | None) -> None:
        if number != self._number or self._is_closed:
            return  # from an engine that is gone
        self._heard_s = self.clock()
        if isinstance(message, Step):
            self._step(message)
        elif isinstance(message, Ready):
            self._became_ready(message)
        elif isinstance(message, Refused):
            self._refused(message)
        elif isinstance(message, Switched):
            self._switched(message)
        elif isinstance(message, Failed):
            self.failed = message.why
        else:
            self._lost()

    def _became_ready(self, message: Ready) -> None:
        self.ready, self.is_up = message, True
        if not self.history:
            self.history.append(message.scheduler)
        self.metrics.scheduler(message.scheduler, message.version)
        self.has_settled.set()
        for sequence in list(self._sequences.values()):  # those that were queued when the last engine went down
            self._send(sequence)

    def _lost(self) -> None:
        """The engine is gone: fail what ran, keep what waits, start it again."""
        self.is_up, self.last = False, None
        for waiter in self._switches.values():
            waiter.set_exception(UnavailableError("the engine went down meanwhile; ask again"))
        self._switches.clear()
        running = [s for s in self._sequences.values() if s.state == "running"]
        self._end_all(running, EngineLostError("the engine went down while this request ran; ask again"))
        tired = [s for s in self._sequences.values() if s.tries >= MOST_TRIES]
        self._end_all(tired, EngineLostError(f"the engine went down {MOST_TRIES} times with this request in its queue"))
        self._fruitless += 1
        if self.failed or self._fruitless >= MOST_LIVES:
            self.failed = self.failed or f"the engine went down {self._fruitless} times in a row; see the log"
            log.error("%s", self.failed)
            self._end_all(self._sequences.values(), UnavailableError(self.failed))
            self.has_settled.set()
            self.has_failed.set()
            return
        self.metrics.restarts.inc()
        pause_s = 0.0 if self._fruitless == 1 else self.limits.backoff_s * 2 ** (self._fruitless - 2)
        log.warning(
            "the engine went down: %d running sequences failed, %d wait; starting it again in %g s",
            len(running), self._waiting, pause_s,
        )  # fmt: skip
        self._restart = asyncio.create_task(self._start_later(pause_s))

    async def _watch_over(self) -> None:
        """Kill an engine that has work and says nothing."""
        while True:
            await asyncio.sleep(self.limits.stall_s / 4)
            if self.is_up and self._sequences and self.clock() - self._heard_s > self.limits.stall_s:
                log.error("the engine has said nothing for %g s; it is killed", self.limits.stall_s)
                self._heard_s = self.clock()
                assert self._host is not None
                self._host.kill()

    async def _start_later(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        if self._host is not None:
            await asyncio.to_thread(self._host.close)
        self._start()

    # --- requests ---

    def submit(
        self,
        wanted: list[Wanted],
        tenant: str,
        columns: Mapping[str, float],
        ttft_slo_s: float,
        tpot_slo_s: float,
        arrived_s: float | None = None,
    ) -> Group:
        """Queue the sequences of a request that came at `arrived_s` (None: now); all of them, or none.

        Raises:
            BusyError: too much is waiting. UnavailableError: nothing is taken any more.
            RequestError: a prompt that the engine can never hold, or more sequences than may ever wait.
        """
        if self.is_draining or self._is_closed:
            raise UnavailableError("the server is about to end; ask another")
        if self.failed or self.ready is None:
            raise UnavailableError(self.failed or "the model is being loaded")
        if len(wanted) > self.limits.waiting:
            raise RequestError(
                f"{len(wanted)} sequences (prompts times n) are more than {self.limits.waiting}, which may wait here; "
                "ask for fewer"
            )
        sizes = [self._room(one) for one in wanted]
        tokens = sum(len(one.prompt) for one in wanted)
        if self._waiting + len(wanted) > self.limits.waiting or (
            self._waiting and self._waiting_tokens + tokens > self.limits.waiting_tokens
        ):
            self.metrics.turned_away("queue")
            raise BusyError(f"{self._waiting} sequences are waiting already", self._retry_after_s())
        group, told = Group(), 1.0 - self.limits.slo_margin
        now = self.clock()
        arrived_s = now if arrived_s is None else arrived_s
        if not self._sequences:
            self._heard_s = now  # an engine without work says nothing
        for index, (one, size) in enumerate(zip(wanted, sizes, strict=True)):
            hashes, chain = block_hashes(one.prompt, self.ready.block_tokens, self._secret)
            submit = Submit(
                key=next(self._keys),
                prompt=one.prompt,
                max_new=size,
                sampling=replace(one.sampling, max_new=size),
                hashes=hashes,
                chain=chain,
                columns={**columns, "ttft_slo_s": told * ttft_slo_s, "tpot_slo_s": told * tpot_slo_s},
                arrived_s=arrived_s,
            )
            sequence = Sequence(submit, group, index, tenant, ttft_slo_s, tpot_slo_s, arrived_s)
            group.sequences.append(sequence)
            self._sequences[submit.key] = sequence
            self._waiting += 1
            self._waiting_tokens += len(one.prompt)
            if self.is_up:
                self._send(sequence)
        self._show_queue()
        return group

    def _room(self, one: Wanted) -> int:
        """Output tokens that a sequence may have."""
        assert self.ready is not None
        left = self.ready.max_len - len(one.prompt)
        if left < 1 or (one.max_new is not None and one.max_new > left):
            asked = "1 output token or more" if one.max_new is None else f"{one.max_new} output tokens"
            raise RequestError(
                f"{len(one.prompt)} prompt tokens and {asked} are more than the {self.ready.max_len} tokens that this "
                "model is served with"
            )
        if one.max_new is not None and one.max_new > self.limits.output_tokens:
            raise RequestError(f"max_tokens {one.max_new} is above this server's limit of {self.limits.output_tokens}")
        return min(left, self.limits.output_tokens) if one.max_new is None else one.max_new

    def _send(self, sequence: Sequence) -> None:
        """Hand it to the engine."""
        assert self._host is not None
        sequence.tries += 1
        self._host.send(sequence.submit)

    def cancel(self, group: Group) -> None:
        """Nobody waits for the group's sequences any more; what they hold comes free."""
        for sequence in group.sequences:
            self._leave(sequence, "abort")

    def stopped(self, group: Group, index: int) -> None:
        """A stop string has ended a sequence, of which the engine knows nothing."""
        self._leave(group.sequences[index], "stop")

    def _leave(self, sequence: Sequence, reason: str) -> None:
        if sequence.state != "ended":
            if self._host is not None and self.is_up:
                self._host.send(Cancel(sequence.submit.key))
            self._end(sequence)
            self.metrics.finished(sequence, reason, self.clock())

    def _step(self, step: Step) -> None:
        now = self.clock()
        for key in step.started:
            sequence = self._sequences.get(key)
            if sequence is not None and sequence.state == "queued":
                self._waiting -= 1
                self._waiting_tokens -= len(sequence.submit.prompt)
                sequence.state = "running"
                sequence.scheduled_s = max(now - step.seconds, sequence.arrived_s)  # the step is over
        for output in step.outputs:
            sequence = self._sequences.get(output.key)
            if sequence is None:
                continue  # cancelled meanwhile
            if output.tokens:
                if sequence.generated:
                    self.metrics.gap.observe(now - sequence.last_s)
                else:
                    sequence.first_s = now
                sequence.last_s = now
                sequence.generated += len(output.tokens)
            sequence.cached = output.cached
            if output.reason:
                self._end(sequence)
                self._finishes.append(now)
                self._fruitless = 0
                self.metrics.finished(sequence, output.reason, now)
            sequence.group.news.put_nowait((sequence.index, output))
        self.metrics.step(step, None if self.ready is None else self.ready.kv_blocks, self.last)
        self.last = step
        self._show_queue()

    def _refused(self, message: Refused) -> None:
        sequence = self._sequences.get(message.key)
        if sequence is not None:
            self._end_all([sequence], RequestError(message.why))

    def _end(self, sequence: Sequence) -> None:
        if sequence.state == "queued":
            self._waiting -= 1
            self._waiting_tokens -= len(sequence.submit.prompt)
        sequence.state = "ended"
        self._sequences.pop(sequence.submit.key, None)

    def _end_all(self, sequences: Iterable[Sequence], error: DispatchGymError) -> None:
        for sequence in list(sequences):
            if sequence.state != "ended":
                self._end(sequence)
                self.metrics.finished(sequence, "error", self.clock())
                sequence.group.news.put_nowait(error)

    def _show_queue(self) -> None:
        self.metrics.queue(self._waiting, len(self._sequences) - self._waiting)

    def _retry_after_s(self) -> float:
        """Guess of when a place in the queue will be free, from the pace of the last finishes."""
        if len(self._finishes) < 2 or self._finishes[-1] <= self._finishes[0]:
            return 1.0
        pace = (len(self._finishes) - 1) / (self._finishes[-1] - self._finishes[0])
        return min(max(self._waiting / pace / 2, 1.0), 60.0)

    # --- the scheduler ---

    async def switch(self, scheduler: str) -> Switched:
        """Let another scheduler decide, once it has been loaded and rehearsed; requests stay where they are.

        Raises:
            SwitchError: it cannot be loaded. UnavailableError: the engine is down.
        """
        if not self.is_up or self._host is None:
            raise UnavailableError("the engine is being started; ask again")
        ticket = next(self._tickets)
        waiter: asyncio.Future[Switched] = self._loop.create_future()
        self._switches[ticket] = waiter
        self._host.send(Switch(ticket, scheduler))
        try:
            answer = await waiter
        finally:
            self._switches.pop(ticket, None)
        if answer.error:
            raise SwitchError(answer.error)
        return answer

    def _switched(self, message: Switched) -> None:
        if not message.error:
            self.recipe = replace(self.recipe, scheduler=message.scheduler)
            self.history.append(message.scheduler)
            self.metrics.scheduler(message.scheduler, message.version)
            if self.ready is not None:
                self.ready = replace(self.ready, scheduler=message.scheduler, version=message.version)
        waiter = self._switches.get(message.ticket)
        if waiter is not None and not waiter.done():
            waiter.set_result(message)
