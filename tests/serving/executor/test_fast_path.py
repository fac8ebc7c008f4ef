"""Plain decoding by the short way, its captured steps played by plain torch, against the executor without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor.decode_rows import CHANGED_SLOT, COLUMNS, POSITION, SLOT, TOKEN
from dispatchgym.serving.executor.fast_path import PlainStep
from dispatchgym.serving.executor.inputs import HostStep, pack, unpack
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.sampling import Draws
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.slots import SlotTable
from dispatchgym.serving.executor.step_clock import StepClock
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.solvers.llm.vllm import Vllm

I32 = npt.NDArray[np.int32]
MOST = 6


class Flight:
    def __init__(self) -> None:
        self.rows: I32 = np.full(COLUMNS * 8, 7, np.int32)  # whatever was there
        self.tokens: I32 = np.full(8, -5, np.int32)
        self.result: I32 | None = None

    def is_done(self) -> bool:
        return False

    def wait(self) -> None:
        assert self.result is not None
        self.tokens[: len(self.result)] = self.result


class PlayedSteps:
    """Does what a captured step does, from the packed rows alone; tokens arrive when they are waited for."""

    def __init__(self, decoder: Decoder, slots: SlotTable) -> None:
        self.decoder, self.slots, self.launches = decoder, slots, 0

    def pitch_of(self, rows: int) -> int:
        return 4 if rows <= 4 else 8

    def next_flight(self) -> Flight:
        return Flight()

    def launch(self, flight: Flight, rows: int) -> None:
        self.launches += 1
        slots, pitch = self.slots, self.pitch_of(rows)
        columns = flight.rows[: COLUMNS * pitch].reshape(COLUMNS, pitch)
        for slot, place, block in columns[CHANGED_SLOT:].T.tolist():
            if slot >= 0:
                slots.table[slot, place] = block
        ones = np.ones(pitch, np.int32)
        host = HostStep(columns[TOKEN], columns[SLOT], columns[POSITION], ones, np.arange(pitch, dtype=np.int32), pitch)
        step = unpack(torch.from_numpy(pack(host)), slots.table, host)
        logits = self.decoder.forward(step, slots.newest)
        who = step.slots.long()
        draws = Draws(
            slots.temperature[who], slots.top_k[who], slots.top_p[who], slots.seeds[who], step.positions, False, True
        )
        tokens = self.decoder.ops.sample(logits, draws).to(torch.int32)
        slots.newest[who] = tokens
        flight.result = tokens[:rows].numpy().copy()


def serve(
    fast: bool, late: bool, seed: int, kv_blocks: int = 40, waits: bool = True
) -> tuple[dict[int, list[int]], int, Engine]:
    """Outputs of 12 requests that come while others run; with few blocks some are preempted. Who has ended is removed
    once all he has put out is known; `waits`: at once, by waiting for that."""
    played: list[PlayedSteps] = []

    def graphs(decoder: Decoder, slots: SlotTable) -> PlayedSteps:
        played.append(PlayedSteps(decoder, slots))
        return played[0]

    model = open_model("random:tiny", "cpu")
    executor = TorchExecutor(
        model, kv_blocks=kv_blocks, max_seqs=MOST, max_len=200, late=late, graphs=graphs if fast else None
    )
    config = EngineConfig(kv_blocks=kv_blocks, max_seqs=MOST, max_len=200, token_budget=64)
    none = np.zeros(0)
    profile = load_profile("h200-8b")
    state = fresh_state(Workload(none, none, none), config, profile, 0, steps=False, tokens=False)
    now = [0.0]
    engine = Engine(state, Vllm(), EngineSpec(config, profile, kv_blocks), executor=executor, clock=lambda: now[0])
    rng = np.random.default_rng(seed)
    wanted = [
        (
            rng.integers(0, 512, int(rng.integers(1, 90))).astype(np.int32),
            Sampling(
                max_new=int(rng.integers(1, 60)), temperature=float(rng.choice([0.0, 0.9])), seed=i,
                top_k=int(rng.choice([0, 5])), stop=tuple(rng.integers(0, 512, 30).tolist()),
            ),
        )
        for i in range(12)
    ]  # fmt: skip
    outputs: dict[int, list[int]] = {}
    open_requests: dict[int, int] = {}
    come = 0
    while come < len(wanted) or open_requests:
        while come < len(wanted) and (len(open_requests) < 3 or rng.random() < 0.1):
            prompt, sampling = wanted[come]
            r = engine.submit(len(prompt), sampling.max_new)
            executor.add(r, prompt, sampling)
            open_requests[r] = come
            come += 1
        went_on = engine.step()
        now[0] += 0.01
        for r in [r for r in open_requests if engine.state.req["state"][r] == ENDED]:
            assert engine.state.req["status"][r] == FINISHED
            if waits or not went_on:
                executor.flush()
            if not executor.is_settled(r):
                continue
            text = executor.outputs(r).ids.tolist()
            assert len(text) == engine.state.req["generated"][r]
            outputs[open_requests.pop(r)] = text
            executor.remove(r)
            engine.release(r)
    return outputs, played[0].launches if fast else 0, engine


@pytest.mark.parametrize("late", [False, True])
def test_the_short_way_says_the_same(late: bool) -> None:
    reference, _, _ = serve(False, False, 3)
    outputs, launches, engine = serve(True, late, 3)
    assert launches > 40
    assert outputs == reference
    assert int(engine.state.eng["free"][0]) == 40


def test_who_has_ended_leaves_without_anybody_waiting_for_the_step_that_runs() -> None:
    assert serve(True, True, 3, waits=False)[0] == serve(False, False, 3)[0]


def test_a_step_awaits_only_those_who_put_something_out() -> None:
    step = PlainStep(np.array([4, 7], np.int32), Flight())
    step.emitted[:] = 1, 0
    assert [step.awaits(request) for request in (4, 7, 9)] == [True, False, False]


def test_the_short_way_says_the_same_when_blocks_run_short() -> None:
    reference, _, _ = serve(False, False, 5, kv_blocks=14)
    outputs, launches, engine = serve(True, True, 5, kv_blocks=14)
    assert launches > 20
    assert outputs == reference
    assert int(engine.state.req["preemptions"].sum()) > 0


def test_steps_that_nobody_waits_for_are_laid_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 10, the host plans in 1: launched at 0, 1, 11, .. 31, seen to end at 10, 20, 30, 40; what is usual is
    known of three."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock, engine_s = StepClock(), 0.0
    ends = []
    for began, seen in ((0.0, None), (1.0, 10.0), (11.0, 20.0), (21.0, 30.0), (31.0, 40.0)):
        now[0] = began if seen is None else seen
        engine_s = max(engine_s, began) + clock.launched(began, began, previous_ended=seen is not None)
        ends.append(engine_s)
    assert ends == pytest.approx([0.0, 10.0, 20.0, 40.0, 50.0], abs=1e-5)
    now[0] = 55.0  # a step that is waited for, after the last of these ended at 50
    assert max(engine_s, 41.0) + clock.waited(41.0) == pytest.approx(55.0)


def test_time_that_went_by_idly_is_nobodys_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 10; after the fifth nobody asks for 5,000, and then steps go on."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock, spent = StepClock(), []
    for began, seen, idle in (
        (0.0, 0.0, False), (1.0, 10.0, False), (11.0, 20.0, False), (21.0, 30.0, False), (31.0, 40.0, False),
        (5000.0, 5000.0, True), (5001.0, 5010.0, False), (5011.0, 5020.0, False),
    ):  # fmt: skip
        now[0] = seen
        spent.append(clock.launched(began, began, previous_ended=seen > 0, idle=idle))
    assert spent[4:] == pytest.approx([10.0, 10.0, 10.0, 10.0], abs=1e-5)


def test_a_first_step_that_waits_for_a_compiler_is_not_taken_for_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 10, but the first is seen to end after 3,000: none of the others seems to take no time."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock, spent = StepClock(), []
    for began, seen in ((0.0, 0.0), (1.0, 3000.0), (3001.0, 3010.0), (3011.0, 3020.0), (3021.0, 3030.0)):
        now[0] = seen
        spent.append(clock.launched(began, began, previous_ended=seen > 0))
    assert min(spent[2:]) >= 9.0
