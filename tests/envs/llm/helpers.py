"""Small workloads and policies that several tests of the engine share."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.state import ENDED, RUNNING, WAITING, State
from dispatchgym.envs.llm.workload import Workload

PROFILE = Profile(
    name="test", gpu="none", model="none", source="roofline", kv_tokens=4096, kv_bytes_per_token=100, segments=8,
    base_s=0.001, weights_s=0.004, token_s=2e-5, pair_s=1e-9, context_s=3e-8, swap_bytes_per_s=1e6,
    graph_sizes=(1, 2, 4, 8),
)  # fmt: skip


def random_workload(seed: int, n: int = 40, *, longest: int = 200, rate: float = 20.0, shared: bool = True) -> Workload:
    """Requests with Poisson arrivals; `shared`: some prompts begin alike, and hashes of 16 tokens say so."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, longest, n)
    output = rng.integers(1, longest, n)
    ptr, hashes = [0], []
    for i in range(n):
        blocks = int(prompt[i]) // 16 if shared else 0
        common = min(blocks, int(rng.integers(0, 6)))
        family = int(rng.integers(0, 3))
        hashes += [1 + 1000 * family + j for j in range(common)]
        hashes += [10**6 + 1000 * i + j for j in range(blocks - common)]
        ptr.append(len(hashes))
    return Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)),
        prompt_tokens=prompt,
        output_tokens=output,
        max_new_tokens=output + rng.integers(0, 50, n),
        ttft_slo_s=rng.uniform(0.01, 1.0, n),
        priority=rng.integers(0, 3, n),
        tenant=rng.integers(0, 3, n),
        hash_ptr=np.array(ptr),
        hashes=np.array(hashes, np.int64),
        hash_block=16,
    )


def check_ledger(s: State) -> None:
    """Every block is held by as many as its count says, or is in the ring of free ones; tables and queue agree."""
    e = s.eng[0]
    size, knot = int(e["block_tokens"]), int(e["kv_blocks"])
    held = np.zeros(knot, int)
    running = [int(r) for r in s.run[: e["running"]]]
    assert len(set(running)) == len(running)
    assert sorted(running) == np.flatnonzero(s.req["state"] == RUNNING).tolist()
    for r in running:
        q = s.req[r]
        assert q["blocks"] * size >= q["computed"]
        assert 0 <= q["slot"] < e["max_seqs"]
        blocks = s.table[q["slot"], : q["blocks"]]
        assert len(set(blocks.tolist())) == len(blocks)
        np.add.at(held, blocks, 1)
    assert len({int(s.req[r]["slot"]) for r in running}) == len(running)
    pinned = int(s.req["pinned"].sum())
    assert held.sum() + pinned == s.block["ref"][:knot].sum()
    if not pinned:
        assert np.array_equal(held, s.block["ref"][:knot])
    ring, at = [], int(s.block[knot]["after"])
    while at != knot:
        ring.append(at)
        assert s.block[s.block[at]["after"]]["before"] == at
        at = int(s.block[at]["after"])
    assert len(ring) == e["free"]
    assert sorted(ring) == np.flatnonzero(s.block["ref"][:knot] == 0).tolist()
    waiting, r = [], int(e["head"])
    while r != -1:
        waiting.append(r)
        r = int(s.req[r]["after"])
    assert len(waiting) == e["waiting"]
    assert sorted(waiting) == np.flatnonzero(s.req["state"] == WAITING).tolist()
    assert e["host_blocks"] - e["host_free"] == s.req["host_blocks"].sum()
    assert e["ended"] == (s.req["state"] == ENDED).sum()
    named = s.map_key[s.map_key != 0]
    assert sorted(named) == sorted(s.block["key"][:knot][s.block["key"][:knot] != 0])
    assert np.array_equal(s.block["key"][s.map_block[s.map_key != 0]], named)


class PlainFcfs:
    """First come, first served, written out anew over the view: the running in order, then the queue."""

    name = "plain-fcfs"
    oracle = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        budget, free = view.token_budget, view.free_blocks
        running = [int(r) for r in view.running.id]
        table = {int(r): k for k, r in enumerate(view.running.id)}
        grants: list[tuple[int, int]] = []
        preempt: list[int] = []
        alive = list(running)
        held = {r: int(view.running.blocks[table[r]]) for r in running}
        for r in running:
            if r not in alive or budget == 0:
                continue
            k = table[r]
            known = int(view.running.known[k])
            n = min(known - int(view.running.computed[k]), budget)
            total = int(view.blocks_for(int(view.running.computed[k]) + n))
            while total - held[r] > free and alive:
                victim = alive.pop()
                free += held[victim]
                preempt.append(victim)
                if victim == r:
                    break
            if r in preempt:
                continue
            free -= total - held[r]
            held[r] = total
            budget -= n
            grants.append((r, n))
        if not preempt:
            places = view.free_seqs
            for k, r in enumerate(view.waiting.id):
                known = int(view.waiting.known[k])
                n = min(known, budget)
                if budget == 0 or places == 0 or int(view.blocks_for(known)) > free:
                    break
                free -= int(view.blocks_for(n))
                budget -= n
                places -= 1
                grants.append((int(r), n))
        return Plan(grants=grants, preempt=[(r, "recompute") for r in preempt])
