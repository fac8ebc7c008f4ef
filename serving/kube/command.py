"""`dispatchgym serve kube`: the scheduler extender as a server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import uvicorn

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.http_server import HttpServer, is_local, serve_and_tell, spare_the_collector
from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.decisions import Decisions
from dispatchgym.serving.kube.extender import Extender, ExtenderConfig
from dispatchgym.serving.kube.follow import Follower
from dispatchgym.serving.kube.metrics import ExtenderMetrics
from dispatchgym.serving.kube.one_packet import OnePacketHttp
from dispatchgym.serving.kube.policies import PLUG_INS, load_policy
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.server import build_app
from dispatchgym.serving.security import Access
from dispatchgym.solvers.packing.rules import RULES

PORT = 8888
KEEP_ALIVE_S = 300
"""How long an idle connection stays open: kube-scheduler keeps one, and a new one costs a handshake."""
MOST_CONNECTIONS = 256


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are told by the watch
    if not 0.1 <= options.latency_budget_ms <= 5000:
        raise UsageError(f"--latency-budget-ms {options.latency_budget_ms:g} must be 0.1 to 5000")
    access = _access(options)
    _check_reach(options, access)
    policy = load_policy(options.policy)
    api = _api(options)
    if options.bind and api is None:
        raise UsageError("--bind needs the cluster: give --in-cluster, --kubeconfig or --api-server")

    with ExitStack() as stack:
        journal: TextIO | None = None
        if options.record is not None:
            journal = stack.enter_context(options.record.open("a", encoding="utf-8"))
        elif options.dry_run:
            journal = sys.stdout
        state = ClusterState()
        metrics = ExtenderMetrics(state)
        decisions = Decisions(journal, metrics.outcome)
        advisor = PlacementAdvisor(state, policy, budget_s=options.latency_budget_ms / 1000.0)
        config = ExtenderConfig(options.dry_run, options.recheck, watches=api is not None)
        extender = Extender(advisor, decisions, metrics, config, api if options.bind else None)
        follower = Follower(api, extender) if api is not None else None
        server = HttpServer(
            uvicorn.Config(
                build_app(extender, access, follower, spare_the_collector),
                host=options.host,
                port=options.port,
                http=OnePacketHttp,
                loop="asyncio",
                ws="none",
                access_log=False,
                log_config=None,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=5,
                limit_concurrency=MOST_CONNECTIONS,
                ssl_certfile=options.tls_cert,
                ssl_keyfile=options.tls_key,
                ssl_ca_certs=str(options.client_ca) if options.client_ca else None,
                # Optional on the connection, for health probes have none; `Access` demands it of everything else.
                ssl_cert_reqs=ssl.CERT_OPTIONAL if options.client_ca else ssl.CERT_NONE,
            )
        )
        asyncio.run(_serve(server, options, api))
        counts = decisions.agreement
        rate = "" if counts.rate is None else f", {100 * counts.rate:.1f} % of the bound ones where the policy wanted"
        print(f"{counts.decided} pods decided{rate}", file=sys.stderr)
    return 0 if server.started else 1


async def _serve(server: HttpServer, options: argparse.Namespace, api: KubeApi | None) -> None:
    def tell(port: int) -> None:
        scheme = "https" if options.tls_cert else "http"
        sees = f"follows {api.url}" if api is not None else "sees only the nodes that it is sent, all of them empty"
        mode = ", dry run: changes nothing" if options.dry_run else ""
        print(f"policy {options.policy} at {scheme}://{options.host}:{port}, {sees}{mode}", file=sys.stderr, flush=True)

    await serve_and_tell(server, tell)


def _access(options: argparse.Namespace) -> Access:
    return Access(options.token_file, options.client_ca is not None, options.max_request_mib * 2**20)


def _check_reach(options: argparse.Namespace, access: Access) -> None:
    """Refuse what would let anybody steer a scheduler, or give a token away."""
    if bool(options.tls_cert) != bool(options.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together")
    if options.client_ca and not options.tls_cert:
        raise UsageError("--client-ca needs --tls-cert and --tls-key")
    for path in (options.tls_cert, options.tls_key, options.client_ca):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: is not a file")
    if is_local(options.host) or options.insecure:
        return
    if access.is_open:
        raise UsageError(
            f"--host {options.host}: whoever reaches the port could steer the scheduler; give --client-ca or "
            "--token-file, or --insecure if the network keeps others out"
        )
    if not options.tls_cert:
        raise UsageError(f"--host {options.host}: the token would travel in the clear; give --tls-cert and --tls-key")


def _api(options: argparse.Namespace) -> KubeApi | None:
    named = [bool(options.kubeconfig), options.in_cluster, bool(options.api_server)]
    if sum(named) > 1:
        raise UsageError("--kubeconfig, --in-cluster and --api-server exclude each other")
    if options.in_cluster:
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise UsageError("--in-cluster: this does not run in a pod; give --kubeconfig or --api-server")
        return KubeApi.connect()
    if options.kubeconfig or options.api_server:
        return KubeApi.connect(url=options.api_server, kubeconfig=options.kubeconfig)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dispatchgym serve kube",
        description="A scheduler extender: kube-scheduler filters, asks here which node is best, and binds. Where the "
        "policy is late or fails, all nodes get the same score and kube-scheduler's own choice stands.",
        epilog="Try it with --dry-run first: docs/kubernetes.md.",
    )
    parser.add_argument(
        "--policy",
        required=True,
        metavar="NAME",
        help=f"bundle:NAME, bundle:PATH, or a rule: {', '.join((*PLUG_INS, *RULES))}",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port, 0 for any free one (default %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="change nothing: answer neutral scores, and write what the policy would have done beside what happened",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="append a JSON line a pod: what was decided and where it went (a dry run writes to stdout without it)",
    )
    parser.add_argument(
        "--latency-budget-ms",
        type=float,
        default=10.0,
        metavar="MS",
        help="what the policy may take for a pod; later, all nodes get the same score (default %(default)g)",
    )
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="filter and preempt ask all of our own filters again; without it, filter refuses only nodes without the "
        "share of a GPU that a pod's annotations ask for",
    )
    parser.add_argument("--bind", action="store_true", help="answer bind too, by binding through the API server")
    cluster = parser.add_argument_group("cluster", "without any of these nothing is known of the pods that run")
    cluster.add_argument("--kubeconfig", default="", metavar="FILE", help="follow the cluster of this file")
    cluster.add_argument("--in-cluster", action="store_true", help="follow the cluster that this runs in")
    cluster.add_argument(
        "--api-server", default="", metavar="URL", help="follow the one there, as behind kubectl proxy"
    )
    access = parser.add_argument_group("access")
    access.add_argument("--token-file", type=Path, metavar="FILE", help="demand the bearer token in it")
    access.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve HTTPS with this certificate")
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="and this key")
    access.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="accept clients with a certificate of this authority (mTLS)"
    )
    access.add_argument("--insecure", action="store_true", help="let anybody ask who reaches the port")
    access.add_argument(
        "--max-request-mib", type=int, default=32, metavar="MIB", help="largest request (default %(default)s)"
    )
    return parser
