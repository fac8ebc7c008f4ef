"""The engine's own loop: takes sequences from a pipe, makes steps on the executor, sends what came out."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import Executor
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.record import DROPPED
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.registry import Registry
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.messages import (
    Cancel,
    Failed,
    Output,
    Ready,
    Refused,
    Step,
    Submit,
    Switch,
    Switched,
    ToEngine,
)
from dispatchgym.serving.llm.recorder import Recorder
from dispatchgym.serving.llm.schedulers import Loaded, load_scheduler, rehearse
from dispatchgym.serving.llm.seat import Seat
from dispatchgym.serving.llm.texts import block_hashes

log = logging.getLogger(__name__)


class LiveExecutor(Executor, Protocol):
    """An executor that is told of sequences before they are scheduled, and forgets them when they have ended."""

    def add(self, request: int, prompt: npt.NDArray[np.int32], sampling: Sampling) -> None: ...

    def remove(self, request: int) -> None: ...

    def outputs(self, request: int) -> Any:
        """What it has put out so far: `ids` and `logprobs`."""

    def is_settled(self, request: int) -> bool:
        """All that it has put out is known."""

    def flush(self) -> None:
        """Wait for tokens that are on their way."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    config: EngineConfig
    profile: Profile
    executor: LiveExecutor


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build an engine in another process: plain values alone.

    Attributes:
        build: "module:function" that returns `Parts`.
        arguments: of it.
        scheduler: who decides first.
        budget_s, most_faults: see `Seat`.
        record: folder for transitions, None for none; record_bytes: bound on its size.
    """

    build: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = "vllm"
    budget_s: float = 0.02
    most_faults: int = 10
    record: str | None = None
    record_bytes: int = 2**30


@dataclass(slots=True)
class _Sequence:
    key: int
    stop: frozenset[int]
    tail: npt.NDArray[np.int32]  # of the prompt, behind its whole blocks
    chain: bytes  # what the next block is hashed with
    sent: int = 0
    has_started: bool = False
    cached: int = 0


class EngineLoop:
    """An engine between two ends of a pipe.

    Attributes:
        engine: the arrays and the clock.
        seat: who decides.
    """

    def __init__(self, connection: Connection, parts: Parts, recipe: Recipe, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._inbox: deque[ToEngine] = deque()  # what came in the middle of a step
        self._executor = parts.executor
        self._clock = clock
        none = np.zeros(0, np.int32)
        empty = Workload(np.zeros(0), none, none, hash_block=parts.config.block_tokens)
        state = fresh_state(empty, parts.config, parts.profile, 0, steps=False, tokens=False)
        spec = EngineSpec(parts.config, parts.profile, int(state.eng["kv_blocks"][0]), slo_kind="mean")
        first = load_scheduler(recipe.scheduler)
        rehearse(first, spec)
        self.engine = Engine(
            state, first.policy, spec, executor=parts.executor, clock=clock, has_arrived=self._has_arrived
        )
        self.seat = Seat(self.engine, first, recipe.budget_s, recipe.most_faults)
        self._sequences: dict[int, _Sequence] = {}  # by the engine's number
        self._numbers: dict[int, int] = {}  # by key
        self._block_tokens = parts.config.block_tokens
        self._caches = parts.config.prefix_caching
        self._preemptions = 0
        # A sequence has ended whose last tokens are on their way; or the last one was cancelled, and no step will tell
        # that its blocks are free.
        self._owes_news = False
        self._loaded: queue.SimpleQueue[tuple[Switch, Loaded | str]] = queue.SimpleQueue()
        self._bell_read, self._bell = os.pipe()
        self._bell_lock = threading.Lock()
        self._is_over = False
        self._recorder = Recorder(recipe.record, recipe.record_bytes) if recipe.record else None

    def run(self) -> None:
        """Serve until the other end is closed.

        Raises:
            Exception: whatever the executor raises.
        """
        e = self.engine.state.eng[0]
        places = min(int(e["kv_blocks"]), self.engine.state.table.shape[1])
        self._connection.send(
            Ready(
                kv_blocks=int(e["kv_blocks"]),
                block_tokens=int(e["block_tokens"]),
                max_len=min(int(e["max_len"]), places * int(e["block_tokens"])) - self.engine.spec.config.max_spec,
                max_seqs=int(e["max_seqs"]),
                token_budget=int(e["token_budget"]),
                scheduler=self.seat.loaded.name,
                version=self.seat.loaded.version,
            )
        )  # fmt: skip
        pause_s: float | None = None
        try:
            while self._listen(pause_s):
                pause_s = self._step()
        finally:
            self.seat.close()
            if self._recorder is not None:
                self._recorder.close()
            with self._bell_lock:  # a scheduler may be on its way still: it must not ring what is another's by then
                os.close(self._bell)
                os.close(self._bell_read)
                self._is_over = True

    def _listen(self, pause_s: float | None) -> bool:
        """Do what has been asked meanwhile, waiting up to `pause_s` for it (None: for ever); False at the end."""
        while self._inbox:
            self._obey(self._inbox.popleft())
            pause_s = 0.0
        while ready := wait([self._connection, self._bell_read], pause_s):
            pause_s = 0.0
            if self._bell_read in ready:
                os.read(self._bell_read, 1)
                self._install(*self._loaded.get())
            if self._connection in ready:
                try:
                    self._obey(self._connection.recv())
                except (EOFError, ConnectionResetError):
                    return False
        return True

    def _has_arrived(self) -> bool:
        """In the middle of a step: a request has come. What is asked is done after it, or once it has stopped."""
        with suppress(EOFError, ConnectionResetError):  # the end is for `_listen` to see
            while self._connection.poll():
                self._inbox.append(self._connection.recv())
        return any(isinstance(message, Submit) for message in self._inbox)

    def _obey(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Cancel):
            number = self._numbers.get(message.key)
            if number is not None:
                self.engine.abort(number)
                self._forget(number)
                self._owes_news = not self._sequences
        else:
            threading.Thread(target=self._load, args=(message,), name="load scheduler", daemon=True).start()

    def _submit(self, message: Submit) -> None:
        try:
            number = self.engine.submit(
                len(message.prompt), message.max_new, hashes=message.hashes, grows=True, arrived_s=message.arrived_s,
                **message.columns,
            )  # fmt: skip
        except UsageError as error:
            self._connection.send(Refused(message.key, str(error)))
            return
        self._numbers[message.key] = number
        tail = message.prompt[len(message.hashes) * self._block_tokens :].copy()
        self._sequences[number] = _Sequence(message.key, frozenset(message.sampling.stop), tail, message.chain)
        self._executor.add(number, message.prompt, message.sampling)

    def _forget(self, number: int) -> None:
        self._name_texts(np.array([number]))
        self._numbers.pop(self._sequences.pop(number).key)
        self._executor.remove(number)
        self.engine.release(number)

    def _name_texts(self, numbers: npt.NDArray[np.integer]) -> None:
        """Let the prefix cache find the blocks that these sequences have filled with their output.

        A block whose last token the host does not know yet is named after the next step, or at the end.
        """
        req, size = self.engine.state.req, self._block_tokens
        if not self._caches:
            return
        for number in numbers[req["computed"][numbers] - req["hashed"][numbers] >= size].tolist():
            sequence, q = self._sequences[number], req[number]
            ids = self._executor.outputs(number).ids
            named = int(q["prompt"]) - len(sequence.tail)  # whole blocks of the prompt
            known = min(int(q["computed"]), int(q["prompt"]) + len(ids))
            text = np.concatenate([sequence.tail, ids])[int(q["hashed"]) - named : known - named]
            hashes, sequence.chain = block_hashes(text, size, sequence.chain)
            self.engine.name_text(number, hashes)

    def _load(self, message: Switch) -> None:
        """Load and rehearse a scheduler beside the steps, then ring."""
        found: Loaded | str
        try:
            found = load_scheduler(message.scheduler)
            rehearse(found, self.engine.spec)
        except DispatchGymError as error:
            found = str(error)
        except Exception as error:  # a policy's own: it is not installed, the one before goes on
            log.exception("scheduler %s cannot be loaded", message.scheduler)
            found = f"{type(error).__name__} while loading; see the log"
        self._loaded.put((message, found))
        with self._bell_lock:
            if not self._is_over:
                os.write(self._bell, b"!")

    def _install(self, message: Switch, found: Loaded | str) -> None:
        if isinstance(found, Loaded):
            self.seat.install(found)
        now = self.seat.loaded
        error = found if isinstance(found, str) else ""
        self._connection.send(Switched(message.ticket, now.name, now.version, error))

    def _step(self) -> float | None:
        """Make a step, if there is something to do, and tell; returns how long to wait for news before the next."""
        engine = self.engine
        before = int(engine.state.eng["steps"][0])
        began = self._clock()
        view = engine.view() if self._recorder is not None and self._sequences else None
        if not (self._sequences and self.seat.step()) and not self._owes_news:
            return None
        e = engine.state.eng[0]
        ran = int(e["steps"]) > before
        if self._owes_news and not ran:
            self._executor.flush()
        self._owes_news = False
        is_whole = ran and not engine.interrupted
        rows = engine.state.batch[: int(e["prefills"] + e["decodes"])] if ran else engine.state.batch[:0]
        if self._recorder is not None and view is not None:
            self._recorder.decision(view, self.seat, rows)
        self._preemptions += int(e["preempted"]) if ran else 0
        started, outputs = self._gather(rows)
        self._connection.send(
            Step(
                outputs=tuple(outputs),
                started=tuple(started),
                is_interrupted=ran and engine.interrupted,
                prefill_tokens=int(e["prefill_tokens"]) if is_whole else 0,
                decode_tokens=int(e["decode_tokens"]) if is_whole else 0,
                prefills=int(e["prefills"]) if is_whole else 0,
                decodes=int(e["decodes"]) if is_whole else 0,
                running=int(e["running"]),
                waiting=int(e["waiting"]),
                free_blocks=int(e["free"]),
                preemptions=self._preemptions,
                repairs=engine.repairs,
                faults=dict(self.seat.faults),
                seconds=self._clock() - began,
                policy_s=self.seat.seconds,
                is_benched=self.seat.is_benched,
            )
        )
        if not self._sequences:
            return None
        return 0.0 if ran else max(0.0, engine.wait_until_s - self._clock())

    def _gather(self, rows: Any) -> tuple[list[int], list[Output]]:
        """Keys of sequences that ran for the first time, and what came out, first tokens first, for those are waited
        for most; sequences that have ended are forgotten, once their last tokens are known."""
        started: list[int] = []
        first: list[Output] = []
        outputs: list[Output] = []
        s = self.engine.state
        for number, emitted in zip(rows["request"].tolist(), rows["emitted"].tolist(), strict=True):
            sequence = self._sequences[number]
            if not sequence.has_started:
                sequence.has_started = True
                q = s.req[number]
                sequence.cached = min(int(q["cached"]), int(q["prompt"]))  # not what it finds again, once preempted
                started.append(sequence.key)
            if emitted:
                (outputs if sequence.sent else first).append(self._output(number, sequence))
        outputs = first + outputs
        self._name_texts(rows["request"])
        if int(s.eng["ended"][0]) > int(s.eng["num"][0]) - len(self._sequences):
            told = {output.key for output in outputs if output.reason}
            for number in [n for n in self._sequences if s.req["state"][n] == ENDED]:
                sequence = self._sequences[number]
                if sequence.key not in told:
                    if not self._executor.is_settled(number):  # waiting for them would leave the device idle
                        self._owes_news = True
                        continue
                    outputs.append(self._output(number, sequence))
                if self._recorder is not None:
                    self._recorder.ended(number, s.req[number])
                self._forget(number)
        return started, outputs

    def _output(self, number: int, sequence: _Sequence) -> Output:
        """What the sequence has put out since it was last asked, and why it ended if that is all."""
        known = self._executor.outputs(number)
        tokens = tuple(known.ids[sequence.sent :].tolist())
        logprobs = tuple(known.logprobs[sequence.sent :])
        sequence.sent += len(tokens)
        reason, q = "", self.engine.state.req[number]
        if q["state"] == ENDED and self._executor.is_settled(number):
            ends = bool(tokens) and tokens[-1] in sequence.stop
            is_dropped = q["status"] == DROPPED
            reason = "dropped" if is_dropped else "stop" if ends else "length"
        return Output(sequence.key, tokens, logprobs, reason, sequence.cached)


def engine_main(connection: Connection, recipe: Recipe, in_process: bool) -> None:
    """Build an engine and serve until the other end of the pipe is closed, or something fails."""
    if in_process:
        # The server decides when to end: it closes the pipe. A signal to the whole group must not cut requests short.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s engine: %(message)s"
        )
    try:
        try:
            builders = Registry("engine builder", {recipe.build: recipe.build})
            parts: Parts = builders[recipe.build](**recipe.arguments)
            loop = EngineLoop(connection, parts, recipe, time.monotonic)
        except (DispatchGymError, OSError) as error:
            connection.send(Failed(" ".join(str(error).split())))
            return
        loop.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the server has gone
    except Exception:
        log.exception("the engine has failed")
    finally:
        connection.close()
        if in_process:
            logging.shutdown()
            os._exit(0)  # libraries of the model take seconds to clean up what the system takes back anyway
