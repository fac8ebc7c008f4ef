"""Replicas of the demo's model behind one endpoint of a local Ray."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("ray", reason="Ray is not installed here; `make test-ray` runs this")

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from dispatchgym.envs.api import DispatchGymError
from dispatchgym.serving.plugins.ray_llm import options_of
from tests.serving.llm.live import eventually

DEMO = {"replicas": 2, "rule": "session-hash", "demo": True, "kv_blocks": 256, "actor": {"num_cpus": 0.1}}


def deploy(scheduler: str) -> None:
    """As `serve deploy FILE` does."""
    application = {
        "name": "demo",
        "import_path": "dispatchgym.serving.plugins.ray_llm:llm_app",
        "args": DEMO,
        "deployments": [{"name": "llm", "user_config": {"scheduler": scheduler}}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    serve.start(http_options={"port": port})
    deploy("vllm")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def ask(url: str, session: str = "somebody", **more: object) -> httpx.Response:
    body = {"model": "demo", "prompt": "hello", "max_tokens": 6, "temperature": 0, "ignore_eos": True, **more}
    return httpx.post(f"{url}/v1/completions", json=body, headers={"x-session-id": session}, timeout=60)


def finished(url: str) -> set[int]:
    """Requests that each replica has finished: asked often enough to hear of both."""
    return {
        int(float(line.rpartition(" ")[2]))
        for _ in range(12)
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("vllm:request_prompt_tokens_count")
    }


def test_replicas_answer_as_the_server_does(url: str) -> None:
    answers = [ask(url, session=f"user {i}") for i in range(15)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1  # the same weights everywhere
    assert answers[0].json()["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert ask(url, nonsense=1).status_code == 400
    assert len(finished(url)) == 2  # both have answered: an odd number, so not equally often


def test_streams_come_through_piece_by_piece(url: str) -> None:
    def stream(number: int) -> list[str]:
        body = {"model": "demo", "prompt": f"number {number}", "max_tokens": 30, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            return [line for line in answer.iter_lines() if line.startswith("data:")]

    with ThreadPoolExecutor(8) as pool:
        for lines in pool.map(stream, range(16)):
            assert lines[-1] == "data: [DONE]"
            assert json.loads(lines[-2][5:])["choices"][0]["finish_reason"] == "length"
            assert len(lines) > 5


def test_another_scheduler_takes_over_in_every_replica(url: str) -> None:
    answered = finished(url)
    before = {httpx.get(f"{url}/status").json()["scheduler"] for _ in range(12)}
    assert before == {"vllm"}
    deploy("edf")
    assert eventually(lambda: {httpx.get(f"{url}/status").json()["scheduler"] for _ in range(12)} == {"edf"})
    assert finished(url) == answered  # the same engines as before
    assert ask(url).status_code == 200


@pytest.mark.parametrize("options", [{"demo": True, "port": 1}, {"demo": True, "kv_block": 1}, {}])
def test_options_that_cannot_work_are_refused_before_anything_is_deployed(options: dict[str, object]) -> None:
    with pytest.raises(DispatchGymError):
        options_of(options)
