"""The request router in a local Ray: three replicas behind one HTTP endpoint."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("ray", reason="Ray is not installed here; `make test-ray` runs this")

import httpx
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

ROUTER = "dispatchgym.serving.plugins.ray_router:RuleRouter"


def broken(view: object) -> object:
    """A rule that raises."""
    raise RuntimeError("no idea")


class Replica:
    """Says which process answered; a path of /slow takes a while."""

    async def __call__(self, request: object) -> str:
        await asyncio.sleep(0.3 if request.url.path.endswith("slow") else 0.005)  # type: ignore[attr-defined]
        return str(os.getpid())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    serve.start(http_options={"port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def deployed(rule: str) -> None:
    serve.run(
        serve.deployment(
            Replica,
            num_replicas=3,
            ray_actor_options={"num_cpus": 0.1},
            request_router_config=RequestRouterConfig(
                request_router_class=ROUTER, request_router_kwargs={"rule": rule, "seed": 1}
            ),
        ).bind()
    )


def test_a_session_stays_with_its_replica(url: str) -> None:
    deployed("session-hash")
    with httpx.Client() as client:
        homes = [{client.get(url, headers={"x-session-id": f"user {i}"}).text for _ in range(4)} for i in range(12)]
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) > 1


def test_requests_go_round(url: str) -> None:
    deployed("round-robin")
    with httpx.Client() as client:
        known: set[str] = set()
        for _ in range(1000):  # a busy machine takes a while to tell the router of all three
            known.add(client.get(url).text)
            if len(known) == 3:
                break
        answered = [client.get(url).text for _ in range(150)]
    # By lot 50 of the 149 pairs would be of one replica. On a busy machine one that is late to answer is passed over.
    repeated = sum(one == next_one for one, next_one in itertools.pairwise(answered))
    assert repeated <= 35, answered
    assert len(set(answered)) == 3


@pytest.mark.parametrize("rule", ["shortest-queue", f"{__name__}:broken"])
def test_requests_spread_over_queues_whatever_the_rule_does(url: str, rule: str) -> None:
    deployed(rule)
    with ThreadPoolExecutor(12) as pool:
        answers = Counter(pool.map(lambda _: httpx.get(f"{url}/slow", timeout=30).text, range(12)))
    assert sum(answers.values()) == 12
    assert len(answers) == 3
