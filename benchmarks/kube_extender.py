"""The scheduler extender as kube-scheduler sees it: two calls a pod, filter and prioritize, on one kept connection.

The server runs in a process of its own, as `dispatchgym serve kube` does, in front of a cluster that is in its memory;
every pod counts where it was placed. The client does nothing but ask, so pods/s is what the extender alone allows.
Latencies are of single calls; CPU time is the server's, for both calls of a pod, and hardly depends on what else the
machine does. The peer is a server of the standard library that answers at once, but sends head and
body in two packets: what the delayed acknowledgement of the client makes of it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.agents import bundle as bundles

POLICIES = ("best-fit", "kube-scheduler", *(f"bundle:{name}" for name in bundles.shipped("packing")))
PODS_PER_NODE = 10
BAR_PODS_S, BAR_P99_MS = 150.0, 10.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("POLICY", "NODES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve[0], int(options.serve[1]))
        return
    repeats, pods = (3, 200) if options.quick else (5, 400)
    rows = []
    with _server("naive", 100) as (port, _):
        naive = _pods_per_s(port, 100, 20 if options.quick else 50, whole=False, repeats=3)
    shapes = ((100, False), (100, True)) if options.quick else ((100, False), (100, True), (1000, False))
    for policy in POLICIES[:1] if options.quick else POLICIES:
        for nodes, whole in shapes:
            with _server(policy, nodes) as (port, process):
                speed, p50, p99, cpu = _measured(port, process, nodes, pods, whole, repeats)
            name = f"{policy}, {nodes} nodes, {'whole' if whole else 'by name'}"
            bars = (f"bar {BAR_PODS_S:.0f}", f"bar {BAR_P99_MS:.0f}") if nodes == 100 and not whole else ("", "")
            rows += [
                Row(name, speed.value, "pods/s", speed.spread, "two packets", naive.value, bars[0]),
                Row(f"{name}, p50", p50.value, "ms a call", p50.spread),
                Row(f"{name}, p99", p99.value, "ms a call", p99.spread, bar=bars[1]),
                Row(f"{name}, CPU", cpu.value, "ms a pod", cpu.spread),
            ]
    publish(rows, options.json, ("fastapi", "uvicorn", "pydantic", "numpy"))


# --- the client ---


def _node(n: int) -> dict[str, Any]:
    """A node with about as much around its facts as a cloud's nodes have."""
    images = [{"names": [f"registry/image-{i}@sha256:{i:064d}"], "sizeBytes": 10**8 + i} for i in range(20)]
    return {
        "metadata": {"name": f"node-{n:04d}", "labels": {"zone": f"zone-{n % 3}", "kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "pods": "110"}, "images": images},
    }


def _pod(p: int, rng: np.random.Generator, node: str = "") -> dict[str, Any]:
    requests = {"cpu": f"{rng.integers(1, 20) * 50}m", "memory": f"{rng.integers(1, 16) * 128}Mi"}
    owner = {"kind": "ReplicaSet", "name": f"app-{p % 20}", "uid": f"rs-{p % 20}", "controller": True}
    return {
        "metadata": {"name": f"pod-{p}", "namespace": "default", "uid": f"uid-{p}", "labels": {"app": f"app-{p % 20}"},
                     "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}], "nodeName": node},
    }  # fmt: skip


def _ask(port: int, nodes: int, pods: range, whole: bool) -> tuple[float, list[float]]:
    """Seconds for all pods, and of every call; requests are encoded beforehand."""
    rng = np.random.default_rng(pods.start)
    given: dict[str, Any] = {"Nodes": {"metadata": {}, "items": [_node(n) for n in range(nodes)]}}
    if not whole:
        given = {"NodeNames": [f"node-{n:04d}" for n in range(nodes)]}
    bodies = [json.dumps({"Pod": _pod(p, rng), **given}).encode() for p in pods]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    calls = []
    begin = time.perf_counter()
    for body in bodies:
        for verb in ("/filter", "/prioritize"):
            before = time.perf_counter()
            connection.request("POST", verb, body, {"content-type": "application/json"})
            answer = connection.getresponse().read()
            calls.append(time.perf_counter() - before)
            assert answer[:1] in (b"{", b"["), answer[:200]
    seconds = time.perf_counter() - begin
    connection.close()
    return seconds, calls


def _measured(port: int, process: int, nodes: int, pods: int, whole: bool, repeats: int) -> list[Measured]:
    """Pods/s, median and 99th percentile of calls in ms, CPU ms of the server a pod."""
    _ask(port, nodes, range(10**6, 10**6 + 20), whole)  # warm-up
    found = []
    for r in range(repeats):
        before = _cpu_s(process)
        seconds, calls = _ask(port, nodes, range(2 * 10**6 + r * pods, 2 * 10**6 + (r + 1) * pods), whole)
        p50, p99 = np.percentile(calls, (50, 99))
        found.append((pods / seconds, 1e3 * p50, 1e3 * p99, 1e3 * (_cpu_s(process) - before) / pods))
    return [Measured.of(column) for column in zip(*found, strict=True)]


def _cpu_s(process: int) -> float:
    """CPU seconds of a process so far; NaN where /proc is not there."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return float("nan")
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _pods_per_s(port: int, nodes: int, pods: int, whole: bool, repeats: int) -> Measured:
    return Measured.of([pods / _ask(port, nodes, range(r * pods, (r + 1) * pods), whole)[0] for r in range(repeats)])


# --- the server, in a process of its own ---


@contextmanager
def _server(policy: str, nodes: int) -> Iterator[tuple[int, int]]:
    """Port and process number."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", policy, str(nodes)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(30)


def _serve(policy: str, nodes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
    if policy == "naive":
        server = HTTPServer(("127.0.0.1", port), _Naive)
        print(port, flush=True)
        server.serve_forever()
    import uvicorn

    from dispatchgym.serving.http_server import spare_the_collector
    from dispatchgym.serving.kube.advisor import PlacementAdvisor
    from dispatchgym.serving.kube.cluster_state import ClusterState
    from dispatchgym.serving.kube.convert import node_facts, pod_facts
    from dispatchgym.serving.kube.decisions import Decisions
    from dispatchgym.serving.kube.extender import Extender, ExtenderConfig
    from dispatchgym.serving.kube.metrics import ExtenderMetrics
    from dispatchgym.serving.kube.one_packet import OnePacketHttp
    from dispatchgym.serving.kube.policies import load_policy
    from dispatchgym.serving.kube.server import build_app
    from dispatchgym.serving.security import Access

    state, rng = ClusterState(), np.random.default_rng(0)
    for n in range(nodes):
        state.put_node(node_facts(_node(n)))
    for p in range(PODS_PER_NODE * nodes):
        state.put_pod(pod_facts(_pod(p, rng, f"node-{rng.integers(nodes):04d}")))
    advisor = PlacementAdvisor(state, load_policy(policy), budget_s=1.0)
    metrics = ExtenderMetrics(state)
    extender = Extender(advisor, Decisions(), metrics, ExtenderConfig(recheck=True))

    def ready() -> None:
        spare_the_collector()
        print(port, flush=True)

    config = uvicorn.Config(
        build_app(extender, Access(), when_warm=ready), port=port, http=OnePacketHttp, loop="asyncio", access_log=False,
        log_level="warning",
    )  # fmt: skip
    uvicorn.Server(config).run()


class _Naive(BaseHTTPRequestHandler):
    """Answers at once, as http.server does by itself: head and body apart, the kernel free to gather packets."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, format: str, *args: Any) -> None: ...


if __name__ == "__main__":
    main()
