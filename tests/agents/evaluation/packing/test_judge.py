"""What is measured of a run, by hand and against the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.agents.evaluation.packing.judge import fragmentation_pct, outcome, over_time
from dispatchgym.agents.evaluation.packing.problem import PackingAnswer, PackingProblem, Start
from dispatchgym.agents.evaluation.work import Result, WorkItem, execute
from dispatchgym.envs.packing import generate, twin
from dispatchgym.envs.packing.batch import ALLOCATED, PackingConfig
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import kube_scheduler, rules
from dispatchgym.solvers.packing.plan import Plan
from tests.agents.evaluation.packing.examples import TWO_NODES, FixedPolicy, problem


def bind(pod: int, node: int, time: int = 3, slots: tuple[int, ...] = ()) -> Event:
    return Event(time, "bind", pod, node, slots)


ALL = [bind(0, 0), bind(1, 0), bind(2, 1), bind(3, 1)]
BUT_ONE = [bind(2, 0), bind(0, 1), bind(1, 1)]


def run(answer: PackingAnswer, of: PackingProblem | None = None) -> Result:
    return execute(WorkItem(of or problem(), FixedPolicy(lambda start, seed: answer), 0))


def test_a_placement_of_all_pods_improves_and_is_its_own_proof() -> None:
    start = problem().scenario(0)
    assert start is not None
    assert start.placed == (2, 1)
    result = run(PackingAnswer(ALL, decisions=4))
    assert (result.status, result.value, result.decisions) == ("ok", 100.0, 4)
    assert result.metrics["placed"] == [2, 2]
    assert result.metrics["default_placed"] == [2, 1]
    assert result.metrics["outcome"] == "B*"
    assert (result.metrics["pending"], result.metrics["moves"], result.metrics["evictions"]) == (0, 0, 0)
    assert result.metrics["cpu_pct"] == 100.0
    assert result.events == [[3, 0, 0, 0, 0, -1], [3, 0, 1, 0, 0, -1], [3, 0, 2, 1, 0, -1], [3, 0, 3, 1, 0, -1]]


def test_a_plan_counts_its_moves_and_evictions() -> None:
    result = run(PackingAnswer(BUT_ONE, {2: 0, 3: 0, 0: 1}, "feasible"))
    assert result.metrics["placed"] == [1, 2]
    assert (result.metrics["moves"], result.metrics["evictions"], result.metrics["pending"]) == (0, 1, 1)
    assert result.hosts == [[0, 1], [2, 0], [3, 0]]
    assert (result.value, result.metrics["outcome"]) == (0.0, "F")
    moved = run(PackingAnswer(BUT_ONE, {2: 1, 3: 1, 0: 0, 1: 0}))
    assert (moved.metrics["moves"], moved.metrics["evictions"], moved.value) == (3, 0, 100.0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (PackingAnswer([bind(0, 0), bind(2, 0)]), "would use 11 of 10"),
        (PackingAnswer([bind(0, 0)], {0: 0, 2: 0}), "would use 11 of 10"),
        (PackingAnswer([bind(0, 0)], None, "optimal", is_proven=True), "is called optimal, but the default has"),
    ],
)
def test_what_cannot_be_is_an_invalid_result(answer: PackingAnswer, said: str) -> None:
    result = run(answer)
    assert (result.status, result.value) == ("invalid", None)
    assert said in result.message


def test_outcomes_by_hand() -> None:
    start = Start((), {0: 0, 1: 1, 3: 0}, (2, 1))
    full = Start((), {0: 0, 1: 0, 2: 1, 3: 1}, (2, 2))

    def of(then: dict[int, int], proven: bool = False, default: Start = start) -> str:
        return outcome(TWO_NODES, PackingAnswer((), then, is_proven=proven), Plan({}, then), default)

    same, worse, better = {0: 0, 1: 0, 2: 1}, {0: 0, 2: 1, 3: 1}, {0: 0, 1: 0, 2: 1, 3: 1}
    assert [of(same), of(same, True), of(worse), of(better)] == ["F", "D", "F", "B*"]
    assert of(better, default=full) == "nc"
    few = Start((), {3: 0}, (0, 1))
    assert [of(same, default=few), of(same, True, few)] == ["B", "B*"]


def test_where_the_default_left_nothing_pending_there_is_no_value() -> None:
    easy = PackingInstance("easy", Nodes(np.array([[10, 10]])), Pods(np.array([[1, 1]])))
    result = run(PackingAnswer([bind(0, 0)]), problem(easy))
    assert (result.status, result.value, result.metrics["outcome"]) == ("ok", None, "nc")


def test_allocation_and_waiting_over_time_by_hand() -> None:
    instance = PackingInstance(
        "gpu",
        Nodes(np.array([[100, 100]]), gpus=np.array([2])),
        Pods(
            np.array([[1, 1]] * 4),
            gpus=np.array([2, 1, 1, 1]),
            gpu_milli=np.array([1000, 500, 1000, 1000]),
            arrival=np.array([10, 12, 14, 20]),
            lifetime=np.array([5, 2, 100, 100]),
        ),
    )
    events = [
        bind(0, 0, 10, (0, 1)),
        Event(15, "depart", 0, 0, (0, 1)),
        bind(1, 0, 15, (0,)),
        bind(2, 0, 15, (1,)),
        Event(17, "depart", 1, 0, (0,)),
        bind(3, 0, 30, (0,)),
    ]
    found = over_time(instance, events)
    # 2 GPUs for 5 s, 1.5 for 2 s, 1 for 3 s, of 2 GPUs and 10 s.
    assert found["mean_gpu_allocation_pct"] == pytest.approx(100 * (10 + 3 + 3) / 20)
    # Pod 1 waits 3 s, pod 2 waits 1 s; pod 3 only after the last arrival.
    assert (found["pending_hours"], found["mean_wait_s"]) == (4 / 3600, 1.0)
    assert found["curve"][-1] == (7, 50.0)
    never = over_time(instance, events[:2])
    assert never["mean_wait_s"] == (8 + 6) / 4


def test_measures_agree_with_the_simulator() -> None:
    for seed, rule in enumerate(("fgd", "best-fit", "random", "worst-fit")):
        instance = twin.load(seed, scale=0.02)
        done = rules.rollout(instance, rule, PackingConfig(reward=ALLOCATED, fragments=True), seed=seed)
        result = run(PackingAnswer(done.log.events()), problem(instance, "gpus"))
        assert result.value == pytest.approx(done.metrics.gpu_allocation_pct)
        assert result.metrics["fragmentation_pct"] == pytest.approx(done.metrics.fragmentation_pct)
        assert tuple(result.metrics["placed"]) == done.metrics.placed
        assert result.metrics["pending"] == done.metrics.pending
        assert result.metrics["cpu_pct"] == pytest.approx(100 * done.metrics.utilisation[0])


def test_pods_that_left_count_as_placed() -> None:
    rng = np.random.default_rng(5)
    instance = generate.random_cluster(rng, 4, 30, departures=True)
    done = kube_scheduler.rollout(instance)
    result = run(PackingAnswer(done.log.events()), problem(instance, "lifetimes"))
    assert result.status == "ok", result.message
    assert tuple(result.metrics["placed"]) == done.metrics.placed
    assert result.metrics["pending"] == done.metrics.pending
    assert result.metrics["evictions"] == done.metrics.evictions
    assert any(event.kind == "depart" for event in done.log.events())


def test_fragments_of_an_empty_cluster_by_hand() -> None:
    nodes = Nodes(np.array([[8000, 100], [1000, 100]]), gpus=np.array([1, 2]), models=("A", "B"))
    pods = Pods(np.array([[2000, 1], [500, 1]]), gpus=np.array([1, 2]))
    instance = PackingInstance("empty", nodes, pods)
    assert validate([], instance) == {}
    # Half the pods want 2,000 milli-CPU, so node 1 is lost to them; half want 2 GPUs, so node 0 is.
    assert fragmentation_pct(instance, []) == pytest.approx(100 * (0.5 * 2 + 0.5 * 1) / 3)
