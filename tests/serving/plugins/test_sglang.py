"""SGLang's queue under our schedulers, with stand-ins of its objects. Its own sources: tests/conformance/sglang."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dispatchgym.agents.export_targets import instructions, refuse_or_degrade
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.serving.plugins.sglang import director_for, hooks, register
from dispatchgym.serving.plugins.sglang_order import MOST_FAULTS, Director
from dispatchgym.serving.plugins.versions import SGLANG, require_sglang
from tests.envs.llm.helpers import PROFILE


@dataclass
class Req:
    """What the plug-in reads of SGLang's request."""

    rid: str
    prompt: int = 100
    out: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    num_matched_prefix_tokens: int = 0
    priority: int | None = None
    retraction_count: int = 0
    is_done: bool = False

    @property
    def origin_input_ids(self) -> list[int]:
        return [0] * self.prompt

    @property
    def output_ids(self) -> list[int]:
        return [0] * self.out

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(max_new_tokens=50, custom_params=self.extra or None)

    def finished(self) -> bool:
        return self.is_done


CACHE = SimpleNamespace(
    page_size=16,
    evictable_size=lambda: 160,
    token_to_kv_pool_allocator=SimpleNamespace(size=16_000, available_size=lambda: 1600),
)


class Chooses:
    """A policy that does what a function says, and keeps what it saw."""

    name, oracle, texts = "chooses", False, False

    def __init__(self, choose: Callable[[EngineView], Plan]) -> None:
        self.choose = choose
        self.views: list[EngineView] = []

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.spec = spec

    def decide(self, view: EngineView) -> Plan:
        self.views.append(view)
        return self.choose(view)


def directed(choose: Callable[[EngineView], Plan]) -> tuple[Director, Chooses, list[float]]:
    policy, now = Chooses(choose), [10.0]
    return Director(policy, PROFILE, 60.0, (8, 512), lambda: now[0]), policy, now


def shortest_two(view: EngineView) -> Plan:
    w = view.waiting
    ids = w.id[w.prompt_tokens.argsort(kind="stable")][:2]
    return Plan(grants=[(int(r), 10) for r in ids])


def rids(queue: list[Req]) -> str:
    return "".join(r.rid for r in queue)


def test_the_queue_is_put_in_the_policys_order_and_the_rest_is_held_while_others_run() -> None:
    director, _, _ = directed(shortest_two)
    queue = [Req("a", 90), Req("b", 30), Req("c", 60), Req("d", 200)]
    director.order(queue, SimpleNamespace(reqs=[Req("r", 40, 3)]), CACHE)
    assert rids(queue) == "bcad"
    assert director.held == {"a", "d"}
    director.order(queue, None, CACHE)  # nobody runs: nobody may be held back
    assert rids(queue) == "bcad"
    assert director.held == frozenset()


def test_a_plan_that_lets_nobody_in_is_followed_for_a_second() -> None:
    director, _, now = directed(lambda view: Plan(wait_until_s=1e9))
    queue, batch = [Req("a"), Req("b")], SimpleNamespace(reqs=[Req("r", 40, 3)])
    director.order(queue, batch, CACHE)
    assert director.held == {"a", "b"}
    now[0] += 0.9
    director.order(queue, batch, CACHE)
    assert director.held == {"a", "b"}
    now[0] += 0.2
    director.order(queue, batch, CACHE)
    assert director.held == frozenset()


def test_what_the_policy_sees() -> None:
    director, policy, now = directed(shortest_two)
    extra = {"ttft_slo_ms": 500, "tpot_slo_ms": 40, "tenant": 3}
    runs, waits = Req("r", 40), Req("a", 90, extra=extra, num_matched_prefix_tokens=40, retraction_count=1)
    director.order([waits], SimpleNamespace(reqs=[runs]), CACHE)
    now[0], runs.out = 11.0, 9
    director.order([waits], SimpleNamespace(reqs=[runs]), CACHE)
    now[0], runs.out, runs.is_done = 12.0, 12, True
    director.order([waits], SimpleNamespace(reqs=[runs]), CACHE)
    first, second, third = policy.views
    assert (first.kv_blocks, first.free_blocks, first.block_tokens, first.free_seqs) == (1000, 110, 16, 7)
    w = second.waiting
    assert (w.ttft_slo_s[0], w.tpot_slo_s[0], w.tenant[0], w.arrival_s[0]) == (0.5, 0.04, 3, 10.0)
    assert (w.prompt_tokens[0], w.cached_tokens[0], w.computed[0], w.preemptions[0]) == (90, 32, 0, 1)
    r = second.running
    assert (r.generated[0], r.computed[0], r.blocks[0], r.first_token_s[0]) == (9, 48, 3, 11.0)
    assert bool(r.decoding[0])
    assert len(third.running) == 0
    assert (third.finished, third.history.tolist()) == (1, [9])  # as many as were last seen


@pytest.mark.parametrize("what", ["raises", "none"])
def test_a_policy_that_fails_leaves_sglangs_order_and_is_benched(what: str) -> None:
    def choose(view: EngineView) -> Plan:
        if what == "raises":
            raise RuntimeError("no idea")
        return None  # type: ignore[return-value]

    director, policy, _ = directed(choose)
    queue, batch = [Req("a"), Req("b")], SimpleNamespace(reqs=[Req("r", 40, 3)])
    for _ in range(MOST_FAULTS + 5):
        director.order(queue, batch, CACHE)
        assert (rids(queue), director.held) == ("ab", frozenset())
    assert director.is_benched
    assert len(policy.views) == MOST_FAULTS
    slow = Director(Chooses(shortest_two), PROFILE, -1.0, (8, 512))
    slow.order(queue, batch, CACHE)
    assert slow.faults == {"late": 1}


def test_hooks_stop_at_the_first_who_is_held_and_refuse_what_they_cannot_steer() -> None:
    director, _, _ = directed(shortest_two)
    ranks = [1]
    order, admit = hooks(director, "stop", lambda: ranks[0])
    asked: list[str] = []
    policy = SimpleNamespace(enable_priority_scheduling=False, tree_cache=CACHE)
    queue = [Req("a", 90), Req("b", 30), Req("c", 60)]
    batch = SimpleNamespace(reqs=[Req("r", 40, 3)])
    order(lambda p, q, b, **more: asked.append(rids(q)), policy, queue, batch, processed_tokens=7)
    assert asked == ["abc"]  # SGLang's own work comes first
    assert rids(queue) == "bca"
    assert [admit(lambda adder, r, *_: r.rid, None, r, False, None) for r in queue] == ["b", "c", "stop"]
    ranks[0] = 2
    with pytest.raises(UsageError, match="one GPU"):
        order(lambda *_: None, policy, queue, batch)
    policy.enable_priority_scheduling = True
    with pytest.raises(UsageError, match="--enable-priority-scheduling"):
        order(lambda *_: None, policy, queue, batch)


def test_versions_targets_and_policies_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sglang("0.5.23")
    require_sglang("0.5.23.post1")
    for other in ("0.5.22", "0.5.24", "0.6.0", "1.0"):
        with pytest.raises(UsageError, match="unset DISPATCHGYM_POLICY"):
            require_sglang(other)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"sglang=={'.'.join(map(str, SGLANG[0]))}" in project["optional-dependencies"]["sglang"]
    assert "DISPATCHGYM_POLICY='edf'" in instructions("edf", "sglang")
    assert refuse_or_degrade("flow-prefill", "sglang") == [
        "forward passes are not interrupted: decided between steps only"
    ]
    with pytest.raises(UsageError, match="speculation belongs to SGLang"):
        director_for("exspec")
    monkeypatch.delenv("DISPATCHGYM_POLICY", raising=False)
    register()  # nothing is asked for: SGLang is not even imported
    monkeypatch.setenv("DISPATCHGYM_POLICY", "edf")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.0")
    with pytest.raises(SystemExit, match=r"0\.4\.0 is installed"):
        register()


@pytest.mark.parametrize("name", ["vllm", "edf", "sglang", "flow-prefill", "bundle:llm-engine"])
def test_schedulers_of_the_gym_order_the_queue(name: str) -> None:
    director = director_for(name)
    queue = [Req(f"{k}", 50 * k, extra={"ttft_slo_ms": 1000 / k}) for k in range(1, 6)]
    for _ in range(4):
        director.order(queue, SimpleNamespace(reqs=[Req("r", 40, 3)]), CACHE)
    assert director.faults.total() == director.faults["late"]
    assert sorted(r.rid for r in queue) == ["1", "2", "3", "4", "5"]
