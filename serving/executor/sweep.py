"""Measures steps of an executor: any mix of decoding requests and prompt pieces, swapping, pausing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.calibrate import StepCost, step_cost
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.state import NONE
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.torch_executor import TorchExecutor

I32 = npt.NDArray[np.int32]

WARM, TIMED = 2, 5
"""Steps of each kind that are thrown away first, and of which the median counts."""

DECODING = 4
"""Plain steps before each that is measured after such. In traffic most steps are, and a GPU that only decodes rests: a
step of 1,500 tokens of an 8B model took an H200 6 % less time after 50 ms of rest than after others like it."""

PASSES, SLOW_S = {"cuda": 2, "cpu": 4}, 0.03
"""Times that everything is measured, by device: others hold up a CPU, for seconds. Half as often what takes so long."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A kind of step.

    Attributes:
        contexts: tokens that each decoding request holds.
        pieces: (tokens held before, tokens run) of each prompt.
        width: tokens of each decoding request; above 1 it verifies a draft.
        after_plain: steps in which `contexts` decode run before, and are not waited for.
    """

    contexts: tuple[int, ...] = ()
    pieces: tuple[tuple[int, int], ...] = ()
    width: int = 1
    after_plain: bool = False

    def lengths(self) -> list[int]:
        """Tokens that each request comes to hold while the mix is measured."""
        spare = (self.width + DECODING * self.after_plain) * (WARM + TIMED) + 1
        return [n + spare for n in self.contexts] + [start + n + 1 for start, n in self.pieces]

    def fits(self, config: EngineConfig) -> bool:
        """Whether an engine of this configuration could run it, so often as it is measured."""
        longest = self.lengths()
        blocks = sum(-(-n // config.block_tokens) for n in longest)
        tokens = len(self.contexts) * self.width + sum(n for _, n in self.pieces)
        return (
            0 < len(longest) <= config.max_seqs
            and max(longest) <= config.max_len
            and blocks <= config.kv_blocks
            and tokens <= config.token_budget
        )


class Bench:
    """Runs steps on an executor that nobody else uses; what requests hold was never computed, which costs the same."""

    def __init__(self, executor: TorchExecutor, config: EngineConfig, vocabulary: int, seed: int = 0) -> None:
        self.executor = executor
        self.config = config
        self.vocabulary = vocabulary
        self._rng = np.random.default_rng(seed)
        self._admissions = 0
        self._texts: dict[int, tuple[I32, Sampling]] = {}
        executor.renew(self)

    def text(self, request: int) -> tuple[I32, Sampling]:
        """Prompt and sampling of a request that runs for the first time."""
        return self._texts[request]

    def is_over(self, request: int) -> bool:
        """Nobody leaves by himself."""
        return False

    def measure(self, mix: Mix) -> StepCost:
        """Time of one of the mix's steps: the median where steps are waited for, the mean where they follow closely."""
        steps, results, began = self._run(mix), [], 0.0
        closely = self.executor.is_late and not mix.pieces and mix.width == 1
        for k, step in enumerate(steps):
            results.append(step)
            if closely and k + 1 == WARM:
                self.executor.flush()
                began = time.perf_counter()
            if closely and k + 1 == WARM + TIMED:
                self.executor.flush()
                seconds = (time.perf_counter() - began) / TIMED
        start, tokens, decode, _ = results[WARM + TIMED // 2]
        if not closely:
            seconds = float(np.median([seconds for *_, seconds in results[WARM:]]))
        cost = step_cost(start, tokens, decode, seconds)
        return replace(cost, plain_before_s=self.measure(Mix(mix.contexts)).seconds) if mix.after_plain else cost

    def _run(self, mix: Mix) -> Iterator[tuple[I32, I32, npt.NDArray[np.int8], float]]:
        rows, most = len(mix.contexts) + len(mix.pieces), WARM + TIMED
        table = self._table(mix.lengths())
        decodes = len(mix.contexts)
        decode = (np.arange(rows) < decodes).astype(np.int8)
        tokens = np.array([mix.width] * decodes + [n for _, n in mix.pieces], np.int32)
        start = np.array([*mix.contexts, *(first for first, _ in mix.pieces)], np.int32)
        for i, held in enumerate(mix.contexts):
            self._add(i, held + 1, (mix.width + DECODING * mix.after_plain) * most + 1)
        admission = self._admit(rows)
        for _ in range(most):
            for _ in range(DECODING if mix.after_plain else 0):
                self.executor.run(
                    Batch(
                        np.arange(decodes, dtype=np.int32), start[:decodes].copy(), np.ones(decodes, np.int32),
                        decode[:decodes], np.arange(decodes, dtype=np.int32), admission[:decodes].copy(), table,
                        _NO_MOVES, _NO_MOVES, NONE, 0,
                    ), np.inf,
                )  # fmt: skip
                start[:decodes] += 1
            for k, (first, n) in enumerate(mix.pieces):  # each ends its prompt, so that its first token is drawn
                self._add(decodes + k, first + n, 1 + WARM + TIMED)
            batch = Batch(
                np.arange(rows, dtype=np.int32), start.copy(), tokens, decode, np.arange(rows, dtype=np.int32),
                admission, table, _NO_MOVES, _NO_MOVES, NONE, 0,
            )  # fmt: skip
            result = self.executor.run(batch, np.inf)
            yield start.copy(), tokens, decode, result.duration_s
            start[:decodes] += np.maximum(result.emitted[:decodes], 1)
            for k in range(len(mix.pieces)):
                self.executor.remove(decodes + k)
                admission[decodes + k] = self._admit(1)[0]
        for i in range(decodes):
            self.executor.remove(i)

    def swap_seconds_per_block(self, blocks: int) -> float:
        """Seconds that moving a block to the host takes, or back: of a step with many, less the same without."""
        size = self.config.block_tokens
        held = blocks * size - 2
        self._add(0, held + 1, 20)
        table, one, decode = self._table([held + 20]), np.ones(1, np.int32), np.ones(1, np.int8)
        out = np.stack([np.zeros(blocks, np.int32), table[0, :blocks]], 1)
        seconds: list[list[float]] = [[], []]
        for k in range(2 * (WARM + TIMED)):
            moves = k % 2
            batch = Batch(
                one * 0, one * held, one, decode, one * 0, self._admit(1), table, out if moves else _NO_MOVES,
                np.array([[0, blocks]], np.int32) if moves else _NO_MOVES, NONE, 0,
            )  # fmt: skip
            result = self.executor.run(batch, np.inf)
            self.executor.flush()
            seconds[moves].append(result.duration_s)
            self.executor.remove(0)
            self._add(0, held + 1, 20)
        self.executor.remove(0)
        plain, moved = (float(np.median(each[WARM:])) for each in seconds)
        return max(moved - plain, 1e-9) / (2 * blocks)

    def pause_seconds(self, tokens: int) -> float:
        """Seconds that pausing once in the middle of a prompt's pass adds to it."""
        table, one, decode = self._table([tokens]), np.ones(1, np.int32), np.zeros(1, np.int8)
        whole: list[float] = []
        paused: list[float] = []

        def run(group: int, done: int, interrupt_s: float) -> StepResult:
            batch = Batch(
                one * 0, one * 0, one * tokens, decode, one * 0, admission, table, _NO_MOVES, _NO_MOVES, group, done
            )
            return self.executor.run(batch, interrupt_s)

        for k in range(2 * (WARM + TIMED)):
            self._add(0, tokens, 2)
            admission = self._admit(1)
            if k % 2 == 0:
                whole.append(run(NONE, 0, np.inf).duration_s)
            else:
                first = run(NONE, 0, whole[-1] / 2)
                seconds = first.duration_s
                if first.segments_done is not None:
                    seconds += run(0, first.segments_done, np.inf).duration_s
                    paused.append(seconds)
            self.executor.remove(0)
        return max(0.0, float(np.median(paused) - np.median(whole[WARM:]))) if paused else 0.0

    def _add(self, request: int, prompt: int, most: int) -> None:
        ids = self._rng.integers(0, self.vocabulary, prompt).astype(np.int32)
        self._texts[request] = ids, Sampling(max_new=most, ignore_eos=True)

    def _admit(self, rows: int) -> npt.NDArray[np.int64]:
        self._admissions += rows
        return np.arange(self._admissions - rows, self._admissions)

    def _table(self, lengths: list[int]) -> I32:
        """Blocks strewn over the pool, for rows of these lengths."""
        size = self.config.block_tokens
        free = self._rng.permutation(self.config.kv_blocks).astype(np.int32)
        table = np.zeros((self.config.max_seqs, -(-self.config.max_len // size) + 1), np.int32)
        used = 0
        for row, length in zip(table, lengths, strict=False):
            blocks = -(-length // size)
            row[:blocks] = free[used : used + blocks]
            used += blocks
        return table


_NO_MOVES = np.zeros((0, 2), np.int32)


def grid(config: EngineConfig, late: bool) -> list[Mix]:
    """Mixes over the range of what the engine can be given, one thing varied at a time and some together.

    Args:
        late: decoding is not waited for, so that it matters what ran before.
    """
    sizes = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    held = [16, 128, 512, 1024, 2048, 4096, 8192]
    chunks = [16, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    rng = np.random.default_rng(2)
    mixes = [Mix(_unequal(b, n, config.max_len, rng)) for b in sizes for n in held]
    mixes += [Mix(pieces=((start, n),) * k) for n in chunks for start in (0, 512, 2048) for k in (1, 2, 4, 8)]
    mixes += [
        Mix(_unequal(b, n, config.max_len, rng), ((start, chunk),), after_plain=late and start > 0)
        for b in (4, 16, 64, 128, 256) for n in (128, 1024)
        for chunk in (64, 256, 1024, 4096) for start in (0, 1024)
    ]  # fmt: skip
    mixes += [Mix((n,) * b, width=w) for b in (1, 4, 16, 64) for n in (128, 1024) for w in (2, 4, 8)]
    return [mix for mix in mixes if mix.fits(config)]


def _unequal(rows: int, mean: int, longest: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Tokens that requests of real traffic hold, whose lengths scatter (log-normal, sigma 0.8) about a mean.

    Attention waits for the longest, so that equal ones would be read faster.
    """
    if rows == 1:
        return (mean,)
    drawn = np.exp(rng.normal(0.0, 0.8, rows))
    return tuple(np.clip(drawn * mean / drawn.mean(), 8, longest - 64).astype(int).tolist())


def random_mixes(config: EngineConfig, count: int, rng: np.random.Generator, late: bool) -> list[Mix]:
    """Mixes as traffic makes them: decoding requests of all lengths, in half of the steps beside pieces of prompts.

    `late` as for `grid`: half of those with prompts then run after a step that only decodes.
    """
    found: list[Mix] = []
    while len(found) < count:
        longest = int(np.exp(rng.uniform(np.log(64), np.log(config.max_len))))
        many = int(np.exp(rng.uniform(0, np.log(config.max_seqs + 1))))
        contexts = tuple(rng.integers(8, longest, many).tolist()) if rng.random() < 0.9 else ()
        pieces: tuple[tuple[int, int], ...] = ()
        if rng.random() < 0.5 or not contexts:
            chunk = int(np.exp(rng.uniform(np.log(16), np.log(config.token_budget))))
            pieces = tuple(
                (int(rng.integers(0, longest)) if rng.random() < 0.3 else 0, max(1, chunk // int(rng.integers(1, 4))))
                for _ in range(int(rng.integers(1, 4)))
            )
        mix = Mix(contexts, pieces, after_plain=late and bool(contexts and pieces) and rng.random() < 0.5)
        if mix.fits(config):
            found.append(mix)
    return found


def measure_all(bench: Bench, mixes: list[Mix], advance: Callable[[str], None]) -> list[StepCost]:
    """Every mix in each of the PASSES, always in another order; the shortest counts, for what others do only adds."""
    found: list[list[StepCost]] = [[] for _ in mixes]
    rng = np.random.default_rng(0)
    passes = PASSES[bench.executor.model.device.type]
    for turn in range(passes):
        for k in rng.permutation(len(mixes)).tolist():
            if turn < passes // 2 or found[k][0].seconds < SLOW_S:
                found[k].append(bench.measure(mixes[k]))
            advance(f"{len(mixes[k].contexts)} decode, {len(mixes[k].pieces)} read")
    return [min(each, key=lambda step: step.seconds) for each in found]
