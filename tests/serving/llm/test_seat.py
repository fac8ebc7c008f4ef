"""Who decides about a live engine's steps, and what is written down of it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dispatchgym.agents import bundle_export
from dispatchgym.agents.architecture import EncoderConfig, PolicyConfig
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.settings import SPECS
from dispatchgym.envs.api import InvalidPlanError, UnknownNameError, UsageError
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.serving.llm.recorder import SHARD, Recorder
from dispatchgym.serving.llm.schedulers import Loaded, find_bundle, load_scheduler, rehearse
from dispatchgym.serving.llm.seat import FORGIVEN_AFTER, Seat, is_well_formed
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.llm.vllm import Vllm
from tests.envs.llm.helpers import check_ledger
from tests.envs.llm.test_live import Clock, live


class Moody:
    """First come, first served; raises whenever its number is in `bad`."""

    name = "moody"
    oracle = False

    def __init__(self, bad: Any) -> None:
        self.bad = bad
        self.asked = -1

    def reset(self, spec: EngineSpec, seed: int) -> None: ...

    def decide(self, view: EngineView) -> Plan:
        self.asked += 1
        if self.bad(self.asked):
            raise RuntimeError("no idea")
        return Plan()


def serve(seat: Seat, clock: Clock, requests: int, each: int = 20) -> None:
    """Let the seat's engine serve so many, one after the other."""
    for _ in range(requests):
        number = seat.engine.submit(30, each)
        while seat.engine.state.req["state"][number] != ENDED:
            clock.now += 0.01
            assert seat.step()
        assert seat.engine.state.req["status"][number] == FINISHED
        seat.engine.release(number)


def test_rare_faults_are_forgiven_and_frequent_ones_are_not() -> None:
    clock = Clock()
    rare = Moody(lambda k: k % (FORGIVEN_AFTER + 1) == 0)
    seat = Seat(live(Vllm(), clock), Loaded("rare", "", rare, Vllm()), 60.0, 3)
    serve(seat, clock, 12, each=400)
    assert seat.faults["error"] == 5
    assert not seat.is_benched
    frequent = Moody(lambda k: k % 100 == 0)
    seat.install(Loaded("frequent", "", frequent, Vllm()))
    serve(seat, clock, 2, each=400)
    assert seat.is_benched
    assert frequent.asked == 200  # its third fault was its last decision
    seat.close()


def test_a_fallback_that_fails_too_is_replaced_by_one_that_cannot() -> None:
    clock = Clock()
    seat = Seat(live(Vllm(), clock), Loaded("bad", "", Moody(lambda k: True), Moody(lambda k: True)), 60.0, 5)
    serve(seat, clock, 2)
    assert seat.is_benched
    check_ledger(seat.engine.state)
    seat.close()


@pytest.mark.parametrize(
    "plan",
    [{"grants": [(0, np.nan)]}, {"grants": np.array([[0.0, 1.0]])}, {"grants": [(0, 1, 2)]}, {"grants": [("a", 1)]},
     {"preempt": [(0, "burn")]}, {"preempt": [0]}, {"drop": [0.5]}, {"victims": ["x"]}, {"wait_until_s": np.inf},
     {"wait_until_s": "soon"}, {"hold_steps": 1.5}, {"pins": [Pin(0, 5, np.nan)]}, {"pins": ["x"]},
     {"hold_through": {"arrival"}}],
)  # fmt: skip
def test_plans_that_are_none_are_known(plan: dict[str, Any]) -> None:
    assert not is_well_formed(Plan(**plan))
    assert not is_well_formed(plan)


def test_plans_of_every_kind_are_known() -> None:
    assert is_well_formed(Plan())
    assert is_well_formed(
        Plan(
            grants=np.array([[0, 1]]), preempt=[(1, "swap")], victims=np.array([2]), drop=[3], pins=[Pin(4, 16)],
            wait_until_s=1.0, hold_steps=3, hold_through=frozenset({"arrival"}),
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_scheduler_serves_live_or_says_why_not(name: str) -> None:
    clock = Clock()
    engine = live(Vllm(), clock)
    if SCHEDULERS[name]().oracle:
        with pytest.raises(UsageError, match="true output lengths"):
            load_scheduler(name)
        return
    loaded = load_scheduler(name)
    seat = Seat(engine, loaded, 60.0, 10)
    serve(seat, clock, 3, each=5)
    assert not seat.faults
    seat.close()


def test_a_policy_that_fails_in_rehearsal_is_not_let_in() -> None:
    engine = live(Vllm(), Clock())
    with pytest.raises(InvalidPlanError, match="no idea"):
        rehearse(Loaded("bad", "", Moody(lambda k: k == 3), Vllm()), engine.spec)


class Slow:
    """First come, first served; sleeps in its third decision, and notes in which threads it is asked."""

    name = "slow"
    oracle = False

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.threads: list[int] = []

    def reset(self, spec: EngineSpec, seed: int) -> None: ...

    def decide(self, view: EngineView) -> Plan:
        self.threads.append(threading.get_ident())
        if len(self.threads) == 3:
            time.sleep(self.sleep_s)
        return Plan()


def test_a_quick_policy_gets_a_thread_once_it_is_late_and_for_as_long_as_it_is_not_forgiven() -> None:
    clock, own = Clock(), threading.get_ident()
    slow = Slow(1.2)
    seat = Seat(live(Vllm(), clock), Loaded("slow", "", slow, Vllm(), is_quick=True), 1.0, 10)
    serve(seat, clock, 4, each=400)
    assert seat.faults == {"late": 1}
    apart = [k for k, thread in enumerate(slow.threads) if thread != own]
    assert apart == list(range(3, 3 + FORGIVEN_AFTER))
    assert len(slow.threads) > 3 + FORGIVEN_AFTER
    seat.close()
    unknown = Slow(0.0)
    seat.install(Loaded("unknown", "", unknown, Vllm()))
    serve(seat, clock, 1)
    assert own not in unknown.threads
    seat.close()


def test_who_may_ponder_is_not_known_to_be_quick() -> None:
    assert load_scheduler("laps").is_quick
    assert not load_scheduler("menu").is_quick


# --- learned schedulers ---


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an untrained network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundles") / "mine"
    spec = SPECS["engine"]
    network = GraphNetwork(spec, PolicyConfig(EncoderConfig(width=16, layers=1, heads=4, rivals=("shares",)), None))
    bundle_export.export(network, ChoicesConfig(), folder, name="mine", seed=0, training={}, results={}, onnx=False)
    return folder


def test_a_bundle_decides_and_one_with_nan_weights_falls_back(bundle: Path) -> None:
    clock = Clock()
    loaded = load_scheduler(f"bundle:{bundle}")
    assert loaded.version
    seat = Seat(live(Vllm(), clock), loaded, 60.0, 5)
    rehearse(loaded, seat.engine.spec)
    serve(seat, clock, 2)
    assert not seat.faults
    runtime = loaded.policy._runtime  # type: ignore[union-attr]
    runtime.one = lambda graph: np.full(len(graph.candidate), np.nan, np.float32)
    for _ in range(8):  # the network is asked where there is a choice: when requests come
        for _ in range(3):
            seat.engine.submit(40, 5)
        while seat.step():
            clock.now += 0.01
    assert seat.faults["error"] == 5
    assert seat.is_benched
    seat.close()


def test_bundles_of_another_world_and_paths_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="policy for packing"):
        load_scheduler("bundle:packing-gpu")
    assert find_bundle("bundle:mine", bundle.parent) == f"bundle:{bundle}"
    assert find_bundle("bundle:llm-engine", bundle.parent) == "bundle:llm-engine"
    for name in ("bundle:../mine", "bundle:/etc", "bundle:", "bundle:.."):
        with pytest.raises(UsageError, match="by its name"):
            find_bundle(name, bundle.parent)


def test_a_bundle_that_is_not_there_is_answered_with_those_of_the_folder(bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        find_bundle("bundle:minne", bundle.parent)
    with pytest.raises(UnknownNameError, match="known are: llm-engine, mine"):
        find_bundle("bundle:other", bundle.parent)


# --- what is recorded ---


def test_a_recording_goes_on_beside_files_that_are_not_its_own(tmp_path: Path) -> None:
    for name in ("transitions-00000007.npz", "transitions-copy.npz"):
        (tmp_path / name).touch()
    recorder = Recorder(tmp_path, 2**30)
    seat = Seat(live(Vllm(), Clock()), load_scheduler("past-future"), 60.0, 5)
    seat.engine.submit(20, 6)
    view = seat.engine.view()
    seat.step()
    recorder.decision(view, seat, seat.engine.state.batch[:1])
    recorder.close()
    assert (tmp_path / "transitions-00000008.npz").stat().st_size > 0


def test_recorded_transitions_can_be_read_back_and_stay_within_their_bound(tmp_path: Path) -> None:
    clock = Clock()
    seat = Seat(live(Vllm(), clock), load_scheduler("past-future"), 60.0, 5)
    recorder = Recorder(tmp_path, 2**30)
    engine = seat.engine
    views, plans = [], []
    for turn in range(SHARD + 40):
        if turn % 5 == 0:
            engine.submit(20 + turn % 7, 6, ttft_slo_s=1.0, tenant=turn % 2)
        clock.now += 0.01
        view = engine.view()
        before = int(engine.state.eng["steps"][0])
        seat.step()
        e = engine.state.eng[0]
        count = int(e["prefills"] + e["decodes"]) if int(e["steps"]) > before else 0
        recorder.decision(view, seat, engine.state.batch[:count])
        views.append(view)
        plans.append(seat.plan)
        for number in np.flatnonzero(engine.state.req["state"] == ENDED).tolist():
            if number not in engine._free_ids:
                recorder.ended(number, engine.state.req[number])
                engine.release(number)
    recorder.close()
    seat.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["transitions-00000001.npz", "transitions-00000002.npz"]
    at, ended = 0, 0
    for file in files:
        with np.load(file, allow_pickle=False) as found:
            meta = json.loads(str(found["meta"]))
            assert meta["schedulers"] == ["past-future"]
            ended += len(found["ended"])
            prompt = meta["int"].index("prompt_tokens")
            for d in range(len(found["now_s"])):
                view, plan = views[at], plans[at]
                assert found["now_s"][d] == view.now_s
                rows = slice(found["running_ptr"][d], found["running_ptr"][d + 1])
                assert found["running_id"][rows].tolist() == view.running.id.tolist()
                rows = slice(found["waiting_ptr"][d], found["waiting_ptr"][d + 1])
                assert found["waiting_int"][rows, prompt].tolist() == view.waiting.prompt_tokens.tolist()
                assert plan is not None
                rows = slice(found["grants_ptr"][d], found["grants_ptr"][d + 1])
                assert found["grants"][rows].tolist() == [list(grant) for grant in plan.grants]
                batch = found["batch"][found["batch_ptr"][d] : found["batch_ptr"][d + 1]]
                assert set(batch[:, 0].tolist()) == {r for r, _ in plan.grants}
                at += 1
    assert at == SHARD + 40
    assert ended > 40
    again = Recorder(tmp_path, files[1].stat().st_size)  # another run goes on in the folder, with less room
    again._pending.put({"meta": np.array("{}")})
    again.close()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["transitions-00000003.npz"]
