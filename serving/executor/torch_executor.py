"""Runs an engine's batches on a real decoder: paged keys and values, on a GPU or on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.state import NONE
from dispatchgym.serving.executor.device import HostCopy, Pace, to_device
from dispatchgym.serving.executor.drafts import accepted, propose
from dispatchgym.serving.executor.fast_path import FastPath, PlainStep, Steps
from dispatchgym.serving.executor.inputs import HostStep, StepInputs, pack, unpack
from dispatchgym.serving.executor.kv_cache import KVCache
from dispatchgym.serving.executor.logprobs import Logprob, logprobs_of
from dispatchgym.serving.executor.model import Decoder, Hidden
from dispatchgym.serving.executor.ops import Ops, TorchOps
from dispatchgym.serving.executor.sampling import Draws
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.sequences import Sequences
from dispatchgym.serving.executor.slots import SlotTable
from dispatchgym.serving.executor.step_clock import StepClock
from dispatchgym.serving.executor.steps import Rows, host_step, new_cells, places_of, rows_of, spans
from dispatchgym.serving.executor.weights import Model

I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

_NO_GUESSES = np.zeros(0, np.int32)
_NEWEST = -1  # in place of a token id: the newest of the slot


class Source(Protocol):
    """Where the texts of requests come from that nobody has added."""

    def text(self, request: int) -> tuple[I32, Sampling]:
        """Prompt and sampling of a request."""

    def is_over(self, request: int) -> bool:
        """The request will not run any more."""


class Passes(Protocol):
    """Whole forward passes, captured beforehand; `sizes`: their tokens, rising."""

    sizes: tuple[int, ...]

    def run(self, host: HostStep) -> Hidden | None:
        """Run a step up to its last layer; None if it is not among them."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a request has put out, as far as the host knows.

    Attributes:
        ids: token ids, shape (tokens,).
        logprobs: of each token, where they were asked for.
    """

    ids: I32
    logprobs: tuple[Logprob, ...]


@dataclass(slots=True)
class _Pass:
    """A forward pass, on its way or paused between two segments."""

    rows: Rows
    inputs: StepInputs
    hidden: Hidden | None = None
    segment: int = 0


@dataclass(slots=True)
class _Pending:
    """Tokens on their way to the host, one for each of these requests."""

    request: I32
    kept: Bool  # of the tokens
    tokens: HostCopy

    def awaits(self, request: int) -> bool:
        """One of the tokens is the request's."""
        return request in self.request

    def is_here(self) -> bool:
        """The tokens have come."""
        return self.tokens.is_here()

    def book(self, sequences: Sequences) -> None:
        """Wait for the tokens, and append them to their texts."""
        tokens = self.tokens.wait()[self.kept]
        sequences.append(self.request, tokens)
        sequences.row["ended"][self.request] |= sequences.are_stops(self.request, tokens)


class TorchExecutor:
    """An executor for engines, on a model of one's own.

    Requests are made known by `add`, or asked from `source` when they first run. With `late`, a decoding step's tokens
    are read while the next step runs: a row that has come to a stop token is reported one step later, with nothing put
    out; `flush` waits for the rest. Steps that read prompts, verify drafts or keep log-probabilities are waited for.

    Attributes:
        is_late: tokens of plain decoding steps are read one step late.

    Args:
        kv_blocks, block_tokens, host_blocks, max_seqs: those of the engine's configuration.
        max_len: longest text, drafts included; 0 for the most that the model was made for.
        ops: what stands between the matrix products; None for plain torch.
        graphs: makes captured steps, for plain decoding; None runs each one op by op.
        passes: makes captured passes, for other steps; None runs each one op by op.
        late: None for what suits the device: late on CUDA.
        source: texts of requests that have not been added; those are forgotten when they end, unless `keep`.

    Raises:
        UsageError: the cache does not fit.
    """

    def __init__(
        self, model: Model, *, kv_blocks: int, max_seqs: int, block_tokens: int = 16, host_blocks: int = 0,
        max_len: int = 0, ops: Ops | None = None, graphs: Callable[[Decoder, SlotTable], Steps] | None = None,
        passes: Callable[[Decoder, SlotTable], Passes] | None = None,
        late: bool | None = None, source: Source | None = None, keep: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.block_tokens = block_tokens
        self.max_len = min(max_len or model.spec.max_positions, model.spec.max_positions)
        self.cache = KVCache(model.spec, kv_blocks, block_tokens, host_blocks, model.device, model.dtype)
        self.slots = SlotTable(max_seqs, -(-self.max_len // block_tokens) + 1, kv_blocks, model.device)
        self.decoder = Decoder(model.spec, model.weights, self.cache.tensor, ops or TorchOps(), model.add_up)
        self.is_late = model.device.type == "cuda" if late is None else late
        self._source = source
        self._keep = keep
        self._sequences = Sequences()
        self._guesses: dict[int, I32] = {}
        self._logprobs: dict[int, list[Logprob]] = {}
        self._sourced: set[int] = set()
        self._paused: dict[int, _Pass] = {}
        self._pending: _Pending | PlainStep | None = None
        self._leaving: list[int] = []
        self._clock = StepClock()
        self._fast: FastPath | None = None
        if graphs is not None:
            self._fast = FastPath(graphs(self.decoder, self.slots), self.slots, self._sequences, block_tokens)
        self._passes = passes(self.decoder, self.slots) if passes is not None else None

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """Tokens of the captured passes that do more than decode; none where none is captured."""
        return self._passes.sizes if self._passes is not None else ()

    # --- requests ---

    def add(self, request: int, prompt: I32, sampling: Sampling) -> None:
        """A request that batches may name from now on.

        Raises:
            UsageError: the number is in use; the text could become longer than the model can read; a token that is
                not in its vocabulary.
        """
        prompt = np.ascontiguousarray(prompt, np.int32)
        spec = self.model.spec
        if len(prompt) + sampling.max_new > self.max_len:
            raise UsageError(
                f"request {request}: {len(prompt)} + {sampling.max_new} tokens; {spec.name} reads up to {self.max_len}"
            )
        if len(prompt) and not (prompt.min() >= 0 and prompt.max() < spec.vocabulary):
            wrong = prompt[(prompt < 0) | (prompt >= spec.vocabulary)][0]
            raise UsageError(f"request {request}: token {wrong} is not in the vocabulary of {spec.vocabulary}")
        if request in self._leaving:
            self.flush()
        self._sequences.add(request, prompt, sampling, spec.stop)
        if sampling.logprobs >= 0:
            self._logprobs[request] = []

    def remove(self, request: int) -> None:
        """Forget a request; its number may be given to another."""
        if self._pending is not None and self._pending.awaits(request):
            self.flush()
        self._drop_pass(request)
        self.cache.drop(request)
        self._guesses.pop(request, None)
        self._logprobs.pop(request, None)
        self._sourced.discard(request)
        if self._sequences.has(request):
            self._sequences.remove(request)

    def renew(self, source: Source | None) -> None:
        """Forget every request, for another engine of the same configuration."""
        self.flush()
        for request in np.flatnonzero(self._sequences.row["here"]).tolist():
            self.remove(request)
        self.slots.forget()
        self._source = source

    def outputs(self, request: int) -> Outputs:
        """What the request has put out so far; see `flush`."""
        self._check_known(request)
        first = int(self._sequences.row["prompt"][request])
        return Outputs(self._sequences.text(request)[first:].copy(), tuple(self._logprobs.get(request, ())))

    def is_settled(self, request: int) -> bool:
        """The host knows all that the request has put out."""
        self._check_known(request)
        row = self._sequences.row[request]
        return bool(row["read"] == row["known"])

    def flush(self) -> None:
        """Wait for the tokens that are on their way to the host."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.book(self._sequences)
        self._forget_leaving()

    # --- steps ---

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        """Run the batch; see Executor.

        Raises:
            UsageError: a request that is not known.
        """
        return self._run(batch, interrupt_s, None)

    def run_until(self, batch: Batch, has_arrived: Callable[[], bool]) -> StepResult:
        """Run the batch; see Attentive.

        Raises:
            UsageError: a request that is not known.
        """
        return self._run(batch, np.inf, has_arrived)

    def _run(self, batch: Batch, interrupt_s: float, has_arrived: Callable[[], bool] | None) -> StepResult:
        began = time.perf_counter()
        if self._fast is not None and batch.group == NONE and not self._paused:
            idle = self._pending is not None and self._pending.is_here()
            plain = self._fast.start(batch)
            if plain is not None:
                return self._go_on(plain, began, idle)
        return self._run_pass(batch, began, interrupt_s, has_arrived)

    @torch.inference_mode()
    def _run_pass(
        self, batch: Batch, began: float, interrupt_s: float, has_arrived: Callable[[], bool] | None
    ) -> StepResult:
        """Start a forward pass, or go on with a paused one."""
        self._move(batch)
        if batch.group != NONE:
            work = self._paused[int(batch.request[0])]
            for request in work.rows.request.tolist():
                del self._paused[request]
        else:
            work = self._assemble(batch)
        if not self._run_segments(work, began + interrupt_s, has_arrived):
            self._paused.update(dict.fromkeys(work.rows.request.tolist(), work))
            nothing = np.zeros(len(batch.request), np.int32)
            seconds = self._clock.waited(began)
            return StepResult(seconds, nothing, nothing.astype(np.int8), segments_done=work.segment)
        emitted, stopped = self._sample(work)
        if work.inputs.host.singles < len(work.rows.request):
            self.flush()  # how long a step with prompts takes is known only at its end
            stopped |= self._sequences.row["ended"][work.rows.request]
        self._leave(work.rows.request[stopped])
        # A pass that was paused comes back with its rows in another order.
        order = work.rows.order if batch.group == NONE else places_of(work.rows.request, batch.request)
        back = np.empty_like(emitted), np.empty_like(stopped)
        back[0][order], back[1][order] = emitted, stopped
        return StepResult(self._clock.waited(began), back[0], back[1].astype(np.int8))

    def _go_on(self, plain: PlainStep, began: float, idle: bool) -> StepResult:
        """While a plain step runs, see to the one before. `idle`: that one had ended when this one began."""
        launched = time.perf_counter()
        previous_ended = self._pending is not None
        self.flush()
        plain.settle(self._sequences)
        self._pending = plain
        if self.is_late:
            seconds = self._clock.launched(began, launched, previous_ended=previous_ended, idle=idle)
        else:
            self.flush()
            plain.stopped |= self._sequences.row["ended"][plain.request]
            seconds = self._clock.waited(began)
        self._leave(plain.request[plain.stopped == 1])
        return StepResult(seconds, plain.emitted, plain.stopped)

    def _leave(self, requests: I32) -> None:
        """These have ended: those that a source brought are forgotten once their last tokens are here."""
        if not self._keep and self._sourced:
            self._leaving += [request for request in requests.tolist() if request in self._sourced]
        if self._pending is None:
            self._forget_leaving()

    def _forget_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        for request in leaving:
            self.remove(request)

    def _move(self, batch: Batch) -> None:
        """Blocks to the host, and back."""
        if len(batch.swap_out):
            if self._source is not None:
                for request in [r for r in self.cache.host_held if self._source.is_over(r)]:
                    self.cache.drop(request)
            self.cache.swap_out(batch.swap_out)
        if len(batch.swap_in):
            slot_of = dict(zip(batch.request.tolist(), batch.slot.tolist(), strict=True))
            for request, count in batch.swap_in.tolist():
                if request in slot_of:
                    self.cache.swap_in(request, batch.table[slot_of[request], :count])
                else:  # preempted again before it could run
                    self.cache.drop(request)

    def _fetch(self, request: int) -> None:
        if self._source is None:
            raise UsageError(f"request {request} is not known to the executor; add it before it is scheduled")
        self.add(request, *self._source.text(request))
        self._sourced.add(request)

    def _drop_pass(self, request: int) -> None:
        if request in self._paused:
            for member in self._paused[request].rows.request.tolist():
                self._paused.pop(member, None)

    def _check_known(self, request: int) -> None:
        if not self._sequences.has(request):
            raise UsageError(f"request {request} is not known to the executor")

    def _assemble(self, batch: Batch) -> _Pass:
        """A fresh pass; those that its requests were in have been given up."""
        sequences = self._sequences
        for request in sequences.missing(batch.request).tolist():
            self._fetch(request)
        for request in batch.request.tolist() if self._paused else ():
            self._drop_pass(request)
        is_new = self.slots.admit(batch.slot, batch.admission)
        row = sequences.row[batch.request]
        end = batch.start + batch.tokens
        unread = np.minimum(end, row["known"]) > row["read"]
        at_once = (batch.tokens > 1) & (batch.decode == 1) | (row["logprobs"] >= 0)
        if at_once.any() or (unread & (is_new | (batch.tokens > 1))).any():
            self.flush()
            unread[:] = False
        rows = rows_of(batch, row["known"], is_new)
        ids = sequences.tokens(np.repeat(rows.request, rows.tokens), spans(rows.start, rows.tokens))
        singles = int((rows.tokens == 1).sum())
        ids[:singles][unread[rows.order[:singles]]] = _NEWEST
        self._draft(rows, ids)
        return _Pass(rows, self._send(rows, host_step(rows, ids), new_cells(rows, batch.table, self.block_tokens)))

    def _draft(self, rows: Rows, ids: I32) -> None:
        """Fill in what rows verify, behind the first token of each."""
        end = np.cumsum(rows.tokens)
        for i in rows.drafted.tolist():
            request, count = int(rows.request[i]), int(rows.tokens[i]) - 1
            text = self._sequences.text(request)
            ids[end[i] - count : end[i]] = propose(text, self._guesses.pop(request, _NO_GUESSES), count)

    def _send(self, rows: Rows, step: HostStep, cells: I32) -> StepInputs:
        """One copy to the device: the step, the blocks that its table lacks, and who is new in a slot."""
        admitted = np.flatnonzero(rows.is_new)
        who = self.slots.pack(rows.slot[admitted], self._sequences.row[rows.request[admitted]])
        packed = np.concatenate([pack(step), cells.ravel(), who])
        there = to_device(packed, self.model.device)
        at_cells, at_who = len(packed) - cells.size - len(who), len(packed) - len(who)
        self.slots.write(there[at_cells:at_who].view(3, -1))
        if len(admitted):
            self.slots.place(there[at_who:])
        return unpack(there[:at_cells], self.slots.table, step)

    def _run_segments(self, work: _Pass, until: float, has_arrived: Callable[[], bool] | None) -> bool:
        """Go on with a forward pass; False if it was told to pause before its end."""
        may_pause = until < np.inf or has_arrived is not None
        if work.hidden is None and self._passes is not None:
            work.hidden = self._passes.run(work.inputs.host)
            if work.hidden is not None:
                work.segment = self.model.spec.segments
                return True
        if work.hidden is None:
            work.hidden = self.decoder.begin(work.inputs, self.slots.newest)
        pace = Pace(self.model.device) if may_pause else None
        while work.segment < self.model.spec.segments:
            self.decoder.run_segment(work.segment, work.hidden, work.inputs)
            work.segment += 1
            if pace is None or work.segment == self.model.spec.segments:
                continue
            if pace.now_s() >= until or (has_arrived is not None and has_arrived()):
                return False
        return True

    def _sample(self, work: _Pass) -> tuple[I32, Bool]:
        """Next tokens of the rows that have some; what each puts out, and whether it has ended."""
        rows, sequences = work.rows, self._sequences
        wants = sequences.row["logprobs"][rows.request] >= 0
        tokens = self._draw(work, wants & (rows.picks > 0)) if len(work.inputs.host.picked) else None
        if self.is_late and not len(rows.drafted) and not wants.any():
            copy = HostCopy(tokens) if tokens is not None else None
            self.flush()
            ended = sequences.row["ended"][rows.request]
            puts_out = (rows.picks == 1) & ~ended
            if copy is not None:
                self._pending = _Pending(rows.request[puts_out], puts_out[rows.picks == 1], copy)
            emitted = puts_out.astype(np.int32)
        else:
            self.flush()  # steps made while this pass was paused
            emitted = self._keep_tokens(work, HostCopy(tokens).wait() if tokens is not None else _NO_GUESSES)
            ended = sequences.row["ended"][rows.request]
        sequences.row["known"][rows.request] += emitted
        full = sequences.row["known"][rows.request] == sequences.row["room"][rows.request]
        return emitted, ended | full

    def _draw(self, work: _Pass, wants: Bool) -> torch.Tensor:
        """Sample the picked tokens, and leave them as the newest of their slots."""
        rows, inputs, slots = work.rows, work.inputs, self.slots
        row = self._sequences.row[rows.request[rows.picks > 0]]
        where = inputs.slots[inputs.picked.long()].long()
        draws = Draws(
            slots.temperature[where], slots.top_k[where], slots.top_p[where], slots.seeds[where],
            inputs.positions[inputs.picked.long()], greedy=not (row["temperature"] > 0).any(),
            filtered=bool(((row["top_k"] > 0) | (row["top_p"] < 1)).any()),
        )  # fmt: skip
        assert work.hidden is not None
        logits = self.decoder.finish(work.hidden, inputs)
        tokens = self.decoder.ops.sample(logits, draws)
        slots.newest[where] = tokens.to(torch.int32)
        if wants.any():
            first = rows.first_pick
            for i in np.flatnonzero(wants).tolist():
                request, span = int(rows.request[i]), slice(int(first[i]), int(first[i + 1]))
                most = int(self._sequences.row["logprobs"][request])
                self._logprobs[request] += logprobs_of(logits[span], tokens[span], most)
        return tokens

    def _keep_tokens(self, work: _Pass, tokens: I32) -> I32:
        """Book sampled tokens at once; how many each row puts out: none where a stop token has come late."""
        rows, sequences = work.rows, self._sequences
        emitted = np.zeros(len(rows.request), np.int32)
        goes_on = ~sequences.row["ended"][rows.request]
        single, first = (rows.picks == 1) & goes_on, rows.first_pick
        request = rows.request[single]
        sequences.append(request, tokens[first[:-1][single]])
        sequences.row["ended"][request] |= sequences.are_stops(request, tokens[first[:-1][single]])
        emitted[single] = 1
        end = np.cumsum(rows.tokens)
        for i in rows.drafted[goes_on[rows.drafted]].tolist():
            who = int(rows.request[i])
            sampled = tokens[first[i] : first[i + 1]]
            left = int(sequences.row["room"][who]) - int(sequences.row["known"][who])
            count = min(accepted(sampled, work.inputs.host.ids[end[i] - len(sampled) + 1 : end[i]]), left)
            self._guesses[who] = sampled[count:]
            stops = np.flatnonzero(sequences.are_stops(np.full(count, who), sampled[:count]))
            if len(stops):
                count = int(stops[0]) + 1
                sequences.row["ended"][who] = True
            for token in sampled[:count]:
                sequences.append(np.array([who]), token)
            emitted[i] = count
            if who in self._logprobs:
                known = self._logprobs[who]
                del known[len(known) - len(sampled) + count :]
        return emitted
