"""Whom the choices of a step are about, by hand: the least of a key, one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.planning import look
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.shortlist import _key
from dispatchgym.envs.llm.sight import FREE, Sight, decoding, new_sight, see
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.solvers.llm.least_slack import LeastSlack
from tests.envs.llm.helpers import PROFILE, random_workload

MOST = 32


def listed_by_hand(sight: Sight) -> list[int]:
    """The requests that read and those that wait, as `shortlist` has them."""
    h = sight.head[0]
    running, waiting = int(h["running"]), int(h["waiting"])
    room = MOST - 2
    found = [k for k in range(running) if not decoding(sight, k)][: room // 4]
    room -= len(found) + 4
    if waiting <= room:
        return found + list(range(running, running + waiting))
    share = room // 8
    for key, count in enumerate((room - 7 * share, 3 * share, 2 * share, share, share)):
        for _ in range(count):
            open_ = [k for k in range(running, running + waiting) if k not in found]
            found.append(min(open_, key=lambda k: (_key(sight, k, key), k)))
    return found


class Watching(LeastSlack):
    def __init__(self) -> None:
        super().__init__()
        self.sight = new_sight(512, MOST)
        self.crowded = 0

    def reset(self, spec: EngineSpec, seed: int) -> None:
        super().reset(spec, seed)
        self.spec = spec

    def decide(self, view: EngineView) -> Plan:
        sight = self.sight = see(self.sight, view, self.spec)
        look(sight)
        expected = listed_by_hand(sight)
        assert sight.listed[: len(expected)].tolist() == expected
        assert len(expected) <= sight.head[0]["listed"] <= len(expected) + 4
        assert (sight.mark[: len(view.running) + len(view.waiting)] == FREE).all()
        self.crowded += len(view.waiting) > MOST
        return super().decide(view)


@pytest.mark.parametrize("seed", range(3))
def test_the_shortlist_is_made_of_the_least_of_each_key(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 100
    workload = replace(
        random_workload(seed, n, rate=1000.0, shared=True), ttft_slo_s=rng.choice([0.05, 0.5, np.inf], n),
        priority=rng.integers(0, 3, n).astype(np.int32),
    )  # fmt: skip
    watching = Watching()
    simulate(workload, watching, EngineConfig(kv_blocks=200, token_budget=128, max_seqs=16), PROFILE)
    assert watching.crowded > 50
