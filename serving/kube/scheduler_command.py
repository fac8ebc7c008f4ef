"""`dispatchgym serve kube-scheduler`: a second scheduler beside the default one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated

import tyro
from prometheus_client import generate_latest

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.policies import load_policy
from dispatchgym.serving.kube.scheduler import Scheduler, SchedulerSettings
from dispatchgym.serving.kube.scheduler_advice import PolicyAdvisor
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.scheduler_events import Recorder
from dispatchgym.serving.kube.scheduler_lease import Election, LeaseSettings
from dispatchgym.serving.kube.scheduler_metrics import SchedulerMetrics
from dispatchgym.serving.kube.scheduler_repack import RepackSettings, planner
from dispatchgym.serving.kube.scheduler_repacker import Repacker

log = logging.getLogger(__name__)

SYNC_S = 60.0


@dataclass(frozen=True, slots=True)
class KubeScheduler:
    """Bind the pods that name this scheduler where a policy says, beside the default scheduler.

    A pod asks for it with `spec.schedulerName: dispatchgym`. While pods fit nowhere, a solver looks for a placement
    that holds more of the urgent ones, and the plan is printed; only --allow-evictions has it carried out.

    Args:
        policy: a rule (most-allocated, best-fit, kube-scheduler, ...) or bundle:NAME.
        scheduler_name: pods with this schedulerName are ours.
        kubeconfig: file that says where the cluster is; default: the one this pod runs in, else ~/.kube/config.
        context: which context of it.
        api_server: address of the API server, instead of a kubeconfig file.
        port: for /metrics, /healthz and /readyz; 0 for none.
        host: address to listen on; the answers tell nothing secret, but need not be for everybody.
        latency_budget_ms: how long the policy may take for a pod; later answers are replaced by least-allocated's. 0 is
            for as long as it takes, which is faster for a quick policy: it needs no thread of its own.
        bind_workers: bindings under way at a time.
        leader_election: of several replicas one decides; off for a single one.
        lease: which Lease, and its times.
        repack_s: how often to look for a better placement while pods fit nowhere; 0 for never.
        planner: cp-sat (most pods, few moves, with proof), repair (local search: milliseconds will do), or bundle:NAME,
            a learned policy that moves pods.
        plan_s: how long cp-sat or repair may take.
        allow_evictions: carry plans out, through the Eviction API and as far as disruption budgets allow.
        repack: how patiently.
        plan: print a plan for the cluster as it stands, and end.
    """

    policy: str = "most-allocated"
    scheduler_name: str = "dispatchgym"
    kubeconfig: str = ""
    context: str = ""
    api_server: str = ""
    port: int = 0
    host: str = "127.0.0.1"
    latency_budget_ms: float = 0.0
    bind_workers: int = 16
    leader_election: bool = True
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    repack_s: float = 60.0
    planner: str = "cp-sat"
    plan_s: float = 10.0
    allow_evictions: bool = False
    repack: RepackSettings = field(default_factory=RepackSettings)
    plan: bool = False


def main(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    options: Annotated[KubeScheduler, tyro.conf.FlagCreatePairsOff] = tyro.cli(
        KubeScheduler, prog="dispatchgym serve kube-scheduler", args=list(argv)
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are told by ours
    return serve(options, _stop_on_signals())


def serve(options: KubeScheduler, stop: threading.Event) -> int:
    """Run the scheduler until `stop`.

    Raises:
        UsageError: options that do not go together, no cluster.
    """
    if options.latency_budget_ms < 0 or options.plan_s <= 0 or options.repack_s < 0:
        raise UsageError("--plan-s must be positive, --latency-budget-ms and --repack-s not negative")
    if options.plan and options.allow_evictions:
        raise UsageError("--plan prints and ends; leave it out to have plans carried out with --allow-evictions")
    policy, plans = load_policy(options.policy), planner(options.planner, options.plan_s)
    api = KubeApi.connect(
        url=options.api_server,
        kubeconfig=options.kubeconfig,
        context=options.context,
        connections=options.bind_workers + 8,
    )
    settings = SchedulerSettings(options.scheduler_name, options.bind_workers)
    identity = f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    election = Election(api, options.lease, identity)
    alone = not options.leader_election
    with ExitStack() as stack:
        state = ClusterState()
        advisor = PlacementAdvisor(state, policy, budget_s=options.latency_budget_ms / 1e3 or None)
        stack.callback(advisor.close)
        recorder = Recorder(api, settings.name, identity)
        recorder.start()
        stack.callback(recorder.stop)
        warm = threading.Event()
        scheduler = Scheduler(
            api, state, PolicyAdvisor(advisor), recorder, settings,
            is_leader=lambda: warm.is_set() and not options.plan and (alone or election.is_leader),
        )  # fmt: skip
        stack.callback(scheduler.stop)
        repacker = Repacker(
            scheduler, advisor.filters, api, plans, recorder,
            every_s=options.repack_s, allow_evictions=options.allow_evictions, settings=options.repack,
            tell=lambda lines: print(*lines, sep="\n", flush=True),
        )  # fmt: skip
        scheduler.start()
        if options.plan:
            return _print_plan(scheduler, repacker, stop)
        if options.port:
            stack.enter_context(_status(options.host, options.port, scheduler, warm))
        while not scheduler.is_synced and not stop.wait(0.05):
            pass
        if not stop.is_set():
            advisor.warm_up()
            warm.set()
            mode = "carried out" if options.allow_evictions else "printed, not carried out"
            log.info("scheduler %s: policy %s at %s; plans are %s", settings.name, policy.name, api.url, mode)
        if options.repack_s > 0:
            repacker.start()
            stack.callback(repacker.stop)
        if alone:
            stop.wait()
        else:
            election.run(stop)
    return 0


def _print_plan(scheduler: Scheduler, repacker: Repacker, stop: threading.Event) -> int:
    for _ in range(int(SYNC_S / 0.05)):
        if scheduler.is_synced or stop.wait(0.05):
            break
    if not scheduler.is_synced:
        raise UsageError(f"the cluster's nodes and pods could not be listed within {SYNC_S:g} s; the log says why")
    plan = repacker.plan()
    if plan is None:
        print("nothing to plan for: no node, or no pod that could be moved or placed")
    elif plan.is_better:
        print(*plan.lines(), sep="\n")
    else:
        print(f"no better placement ({plan.sure})")
    return 0


@contextmanager
def _status(host: str, port: int, scheduler: Scheduler, warm: threading.Event) -> Iterator[None]:
    """/metrics, /healthz and /readyz, in threads of their own."""
    metrics: SchedulerMetrics = scheduler.metrics

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            code, body = 200, b"ok\n"
            if self.path == "/metrics":
                body = generate_latest(metrics.registry)
            elif self.path == "/readyz" and not (scheduler.is_synced and warm.is_set()):
                code, body = 503, b"not ready: the cluster is not listed yet, or the policy not loaded\n"
            elif self.path not in ("/healthz", "/readyz"):
                code, body = 404, b"there are /metrics, /healthz and /readyz\n"
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
