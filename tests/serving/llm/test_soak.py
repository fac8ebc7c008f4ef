"""Long traffic of every kind: nothing is lost, no block stays taken, memory stays flat.

The short form runs with the other tests; `make soak-llm` runs the long one, DISPATCHGYM_SOAK_S seconds (1800).
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from dispatchgym.serving.llm.sequences import Group, Limits, Sequence
from tests.serving.llm.live import Live, eventually, letters, serving

SCHEDULERS = ("vllm", "sarathi", "past-future", "laps", "vtc", "edf", "mlfq", "sglang", "flow-prefill", "andes")
LANES = 24


async def lane(
    live: Live, http: httpx.AsyncClient, seed: int, goes_on: Callable[[int], bool], seen: Counter[str]
) -> None:
    """One request after the other: whole, streamed, left in the middle, with a deadline or a stop string."""
    rng = np.random.default_rng(seed)
    number = 0
    while goes_on(number):
        number += 1
        kind = rng.choice(["whole", "stream", "leave", "deadline", "stop"], p=[0.4, 0.2, 0.15, 0.1, 0.15])
        prompt = f"{'the same beginning ' * int(rng.integers(0, 4))}{seed}/{number}" + "x" * int(rng.integers(1, 120))
        tokens = int(rng.integers(1, 60))
        body = {
            "model": "letters",
            "prompt": prompt,
            "max_tokens": tokens,
            "tenant": f"t{seed % 3}",
            "ttft_slo_ms": 500,
        }
        path = f"{live.url}/v1/completions"
        if kind == "leave":
            async with http.stream("POST", path, json={**body, "stream": True}) as answer:
                async for _ in answer.aiter_lines():
                    break
            seen["left"] += 1
            continue
        if kind == "deadline":
            body["deadline_ms"] = float(rng.uniform(1, 60))
        if kind == "stop":
            body["stop"] = ["q"]
        if kind == "stream":
            text = (await http.post(path, json={**body, "stream": True})).text
            assert text.rstrip().endswith("[DONE]"), text[-300:]
            seen["streamed"] += 1
            continue
        answer = await http.post(path, json=body)
        assert answer.status_code in (200, *([408] if kind == "deadline" else ())), answer.text
        seen[str(answer.status_code)] += 1
        if answer.status_code == 200:
            wanted = letters(prompt, tokens)
            expected = wanted.partition("q")[0] if kind == "stop" else wanted
            assert answer.json()["choices"][0]["text"] == expected


async def traffic(live: Live, goes_on: Callable[[int], bool], every_s: float) -> Counter[str]:
    """All lanes at once, while the scheduler changes."""
    seen: Counter[str] = Counter()

    async def change() -> None:
        k = 0
        while True:
            k += 1
            switch = live.frontend.switch(SCHEDULERS[k % len(SCHEDULERS)])
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(switch, live.loop))
            seen["changes"] += 1
            await asyncio.sleep(every_s)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        changing = asyncio.create_task(change())
        await asyncio.gather(*(lane(live, http, seed, goes_on, seen) for seed in range(LANES)))
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
    return seen


def left_over() -> int:
    """Requests that something still holds on to."""
    gc.collect()
    return sum(type(thing) in (Sequence, Group) for thing in gc.get_objects())


def test_a_short_soak_leaves_nothing_behind() -> None:
    with serving(engine={"kv_blocks": 128, "max_seqs": 16}, limits=Limits(waiting=1000)) as live:
        before = left_over()
        seen = asyncio.run(traffic(live, lambda number: number < 10, 0.05))
        assert eventually(live.idle)
        assert eventually(lambda: left_over() == before)
        assert sum(seen[kind] for kind in ("200", "408", "left", "streamed")) == 10 * LANES
        assert seen["changes"] > 3
        assert live.frontend.last is not None
        assert set(live.frontend.last.faults) <= {"late"}


@pytest.mark.slow
def test_a_long_soak_keeps_memory_flat_and_blocks_conserved() -> None:
    seconds = float(os.environ.get("DISPATCHGYM_SOAK_S", "1800"))
    sizes = []
    with serving(engine={"kv_blocks": 128, "max_seqs": 16}, limits=Limits(waiting=1000)) as live:
        total: Counter[str] = Counter()
        for _ in range(10):
            end = time.monotonic() + seconds / 10
            total += asyncio.run(traffic(live, lambda number, end=end: time.monotonic() < end, 2.0))  # type: ignore[misc]
            assert eventually(live.idle)  # every block is free again
            gc.collect()
            sizes.append(resident_mib())
            print(f"{dict(total)}, {sizes[-1]:.0f} MiB", flush=True)
    assert max(sizes[5:]) < 1.05 * max(sizes[:5]) + 5


def resident_mib() -> float:
    """Memory of this process, server and engine included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")
