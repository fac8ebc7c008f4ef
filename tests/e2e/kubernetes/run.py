"""End to end against a real control plane: default scheduler, extender in front of it, second scheduler.

    make e2e-kubernetes        or        python -m tests.e2e.kubernetes.run --help

The same pod sequence goes through all three. Checked: pods bind where the policy said (best-fit as `judges` computes
it in plain Python, a shipped bundle as it plays in the gym); killing the extender in the middle loses no pod; an API
server restart in the middle loses no pod; of two replicas one binds, and the other takes over; a re-packing plan is
carried out through the Eviction API and a disruption budget holds it up. Printed: pods per second and the time from
creation to binding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.kubernetes.control_plane import ControlPlane, Program, free_port
from tests.e2e.kubernetes.judges import NODE_CPU, NODE_GI, BestFit, InTheGym, Judge
from tests.e2e.kubernetes.load import Cluster, Wish, percentile, wishes

Json = dict[str, Any]
POLICY = "best-fit"
LEARNED = "packing-priority"


class Failed(AssertionError):
    """A check that did not hold."""


def check(holds: bool, what: str) -> None:
    print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        raise Failed(what)


class Run:
    """One control plane, and what is asked of it."""

    def __init__(self, plane: ControlPlane, options: argparse.Namespace) -> None:
        self.plane = plane
        self.options = options
        self.cluster = Cluster(plane.url)
        self.rows: list[Json] = []
        self.sequence = wishes(options.pods, seed=1)

    def python(self, name: str, *arguments: str) -> Program:
        """One of our servers, as its user starts it."""
        command = [
            sys.executable,
            "-m",
            "dispatchgym",
            "serve",
            *arguments,
            "--kubeconfig",
            str(self.plane.kubeconfig()),
        ]
        return self.plane.run(name, command, {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"})

    @contextmanager
    def extender(self, port: int, policy: str = POLICY) -> Iterator[Program]:
        program = self.python(
            "extender", "kube", "--policy", policy, "--port", str(port), "--latency-budget-ms", "200"
        )  # fmt: skip
        program.wait_for(f"http://127.0.0.1:{port}/readyz", 180)
        try:
            yield program
        finally:
            program.end()

    @contextmanager
    def second(self, *more: str, replicas: int = 1) -> Iterator[list[Program]]:
        programs = []
        for number in range(replicas):
            port = free_port()
            program = self.python(
                f"second-{number}", "kube-scheduler", "--policy", POLICY, "--port", str(port),
                "--lease.duration-s", "6", "--lease.renew-deadline-s", "4",
                "--lease.retry-s", "1", *more,
            )  # fmt: skip
            program.wait_for(f"http://127.0.0.1:{port}/readyz", 180)
            programs.append(program)
        time.sleep(1.5)  # the lease
        try:
            yield programs
        finally:
            for program in programs:
                program.end()

    @contextmanager
    def default(self, extenders: Sequence[Json] = ()) -> Iterator[Program]:
        program = self.plane.scheduler(extenders)
        try:
            yield program
        finally:
            program.end(signal.SIGKILL)

    # -- scenarios --

    def throughput(self, label: str, scheduler: str) -> None:
        """The whole sequence by eight threads at once, several times; the median run counts."""
        runs = sorted(
            (self.burst(label, scheduler) for _ in range(self.options.repeat)), key=lambda run: run["pods_per_s"]
        )
        speeds = [run["pods_per_s"] for run in runs]
        row = {"path": label, "nodes": self.options.nodes, "pods": len(self.sequence), **runs[len(runs) // 2]}
        self.rows.append({**row, "pods_per_s_range": [min(speeds), max(speeds)]})

    def burst(self, label: str, scheduler: str) -> Json:
        cluster = self.cluster
        cluster.clear()
        cluster.watch()
        time.sleep(1.0)  # until the scheduler has seen that the cluster is empty
        begin = time.monotonic()
        cluster.create_all(self.sequence, scheduler)
        created = time.monotonic() - begin
        missing = cluster.wait_bound([w.name for w in self.sequence])
        check(not missing, f"{label}: all {len(self.sequence)} pods are bound")
        self.judge_capacity(label)
        waits = [cluster.seen.at[w.name] - cluster.created[w.name] for w in self.sequence]
        seconds = max(cluster.seen.at.values()) - begin
        return {
            "pods_per_s": round(len(self.sequence) / seconds, 1),
            "created_per_s": round(len(self.sequence) / created, 1),
            "bind_p50_ms": round(1000 * percentile(waits, 0.5), 1),
            "bind_p99_ms": round(1000 * percentile(waits, 0.99), 1),
        }

    def one_by_one(self, label: str, scheduler: str, number: int, judge: Judge | None = None) -> None:
        """Each pod is bound before the next is created: the judge knows where each must go."""
        cluster, judge = self.cluster, judge or BestFit(self.options.nodes)
        cluster.clear()
        cluster.watch()
        time.sleep(1.0)  # until the scheduler has seen that the cluster is empty
        wrong, choices = [], []
        for wish in self.sequence[:number]:
            cluster.create(wish, scheduler)
            if cluster.wait_bound([wish.name], 30):
                raise Failed(f"{label}: {wish.name} is not bound within 30 s")
            best, node = judge.best(wish), cluster.seen.node[wish.name]
            if node not in best:
                wrong.append(f"{wish.name} on {node}, not {sorted(best)}")
            judge.put(wish, node)
            choices.append(len(best))
        right, single = number - len(wrong), choices.count(1)
        examples = f": {'; '.join(wrong[:3])}" if wrong else ""
        check(not wrong, f"{label}: one by one, {right} of {number} pods go where {judge.says} says{examples}")
        check(single > number // 3, f"{label}: for {single} of them that is one node alone")

    def in_trouble(self, label: str, scheduler: str, trouble: Callable[[], None]) -> None:
        """The sequence again; when a third of it has been created and one pod is bound, `trouble` happens."""
        cluster = self.cluster
        cluster.clear()
        cluster.watch()
        number = len(self.sequence)
        threads, bound = [], []

        def meanwhile(i: int) -> None:
            if i == number // 3:
                cluster.wait_bound([self.sequence[0].name])
                bound.append(len(cluster.seen.node))
                threads.append(threading.Thread(target=trouble))
                threads[0].start()

        cluster.create_all(self.sequence, scheduler, meanwhile=meanwhile)
        for thread in threads:
            thread.join()
        missing = cluster.wait_bound([w.name for w in self.sequence], 120)
        check(0 < bound[0] < number, f"{label}: that is when {bound[0]} of {number} pods are bound")
        check(not missing, f"{label}: no pod is lost, {number - len(missing)} of {number} are bound")
        lost_answers = trouble == self.restart_api and scheduler == "default-scheduler"
        self.judge_capacity(label, takes_lost_answers_for_refusals=lost_answers)

    def judge_capacity(self, label: str, *, takes_lost_answers_for_refusals: bool = False) -> None:
        """No pod twice, no node over what it has.

        The latter is only noted for kube-scheduler after an API server's crash: it counts a binding whose answer was
        lost as not made, and may fill the place again before its watch shows the pod there.
        """
        sizes = {w.name: w for w in self.sequence}
        used: dict[str, list[int]] = {}
        for pod in self.cluster.pods():
            wish, node = sizes[pod["metadata"]["name"]], pod["spec"]["nodeName"]
            at = used.setdefault(node, [0, 0])
            at[0] += wish.cpu
            at[1] += wish.memory
        over = [n for n, (cpu, memory) in used.items() if cpu > NODE_CPU * 1000 or memory > NODE_GI * 1024]
        twice = self.cluster.seen.again
        check(not twice, f"{label}: no pod is bound twice{f': {twice[:3]}' if twice else ''}")
        if over and takes_lost_answers_for_refusals:
            print(f"  ..   {label}: {len(over)} of {len(used)} nodes over capacity, by kube-scheduler's own doing")
        else:
            check(not over, f"{label}: no node is over capacity{f': {over[:3]}' if over else ''}")

    def default_scheduler(self) -> None:
        with self.default():
            self.throughput("kube-scheduler", "default-scheduler")

    def with_extender(self) -> None:
        port, number = free_port(), min(40, self.options.pods)
        label = f"kube-scheduler + extender ({POLICY})"
        with self.extender(port) as extender, self.default([extender_settings(port)]):
            self.one_by_one(label, "default-scheduler", number)
            self.under_load(label, port)
            self.in_trouble(f"{label}, API server killed and started again", "default-scheduler", self.restart_api)
            self.in_trouble(f"{label}, extender killed", "default-scheduler", lambda: extender.end(signal.SIGKILL))

    def learned(self) -> None:
        """The same with a shipped bundle; where its pods must go, its own environment says."""
        port, number = free_port(), min(100, self.options.pods)
        label = f"kube-scheduler + extender (bundle:{LEARNED})"
        judge = InTheGym(self.options.nodes, LEARNED, self.sequence[:number])
        with self.extender(port, f"bundle:{LEARNED}"), self.default([extender_settings(port)]):
            self.one_by_one(label, "default-scheduler", number, judge)
            self.under_load(label, port)

    def under_load(self, label: str, port: int) -> None:
        """The whole sequence; by the extender's own account every pod must go where its policy said."""
        before = httpx.get(f"http://127.0.0.1:{port}/agreement").json()
        self.throughput(label, "default-scheduler")
        after = httpx.get(f"http://127.0.0.1:{port}/agreement").json()
        agreed, bound = (after[key] - before[key] for key in ("agreed", "bound"))
        unanswered = after["unanswered"] - before["unanswered"]
        self.rows[-1]["where_policy_said"] = f"{agreed} of {bound}, {unanswered} by the fallback"
        check(agreed == bound, f"{label}: {agreed} of {bound} pods went where the policy said, under load")

    def second_scheduler(self) -> None:
        label = f"second scheduler ({POLICY})"
        with self.second():
            self.one_by_one(label, "dispatchgym", min(40, self.options.pods))
            self.throughput(label, "dispatchgym")
            self.in_trouble(f"{label}, API server killed and started again", "dispatchgym", self.restart_api)
        with self.second(replicas=2) as replicas:
            leader = self.leader(replicas)
            self.in_trouble(f"{label}, leader of two killed", "dispatchgym", lambda: leader.end(signal.SIGKILL))

    def leader(self, replicas: Sequence[Program]) -> Program:
        for _ in range(100):
            lease = self.cluster.ask("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/dispatchgym")
            found = [p for p in replicas if f"_{p.pid}_" in lease["spec"]["holderIdentity"]]
            if found:
                return found[0]
            time.sleep(0.2)
        raise Failed("none of the replicas took the lease")

    def restart_api(self) -> None:
        self.plane.kill_api()
        time.sleep(1.0)
        self.plane.start_api()
        print(f"  ..   the API server was back {self.plane.api_start_s:.1f} s after it was started again", flush=True)

    def repacking(self) -> None:
        """Every node holds one small pod; a pod as large as a node waits. Without leave the plan is only printed."""
        cluster, label, nodes = self.cluster, "re-packing", self.options.nodes
        cluster.clear()
        cluster.watch()
        small = [Wish(f"small-{n:03d}", 1000, 1024) for n in range(nodes)]
        for n, wish in enumerate(small):
            cluster.create(wish, "dispatchgym", owner=f"rs-{n:03d}")
            target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{n:03d}"}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": wish.name}, "target": target}
            cluster.ask("POST", f"/api/v1/namespaces/default/pods/{wish.name}/binding", body)
        self.budget("rs-000", allowed=0)
        cluster.create(Wish("large", NODE_CPU * 1000, 1024), "dispatchgym", owner="rs-large")
        with self.second("--repack-s", "3", "--plan-s", "20") as (program,):
            lines = self.told(program, "plan (")
            check(bool(lines), f"{label}: the plan is printed: {lines[:1]}")
            time.sleep(4)
            check("large" not in cluster.seen.node, f"{label}: without --allow-evictions nothing is moved")
        stop = threading.Event()
        controller = threading.Thread(target=self.replace_gone, args=(stop,), daemon=True)
        controller.start()
        with self.second("--repack-s", "3", "--plan-s", "20", "--allow-evictions"):
            missing = cluster.wait_bound(["large"], 120)
            check(not missing, f"{label}: the large pod is bound after one eviction")
            bound = lambda: [p["spec"].get("nodeName") for p in cluster.pods()]  # noqa: E731
            for _ in range(100):
                if all(bound()) and len(bound()) == nodes + 1:
                    break
                time.sleep(0.2)
            check(all(bound()) and len(bound()) == nodes + 1, f"{label}: all {nodes + 1} pods run")
        stop.set()
        controller.join(10)
        evicted = [name for name in cluster.seen.gone if name.startswith("small-")]
        check(len(evicted) == 1, f"{label}: one pod was evicted: {evicted}")
        check("small-000" not in cluster.seen.gone, f"{label}: the pod with the closed disruption budget stayed")

    def budget(self, app: str, allowed: int) -> None:
        """A disruption budget, with the status that the controller manager, which is not here, would write."""
        path = "/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets"
        body = {
            "apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": app},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}},
        }  # fmt: skip
        self.cluster.ask("POST", path, body)
        status = {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}
        status["observedGeneration"] = 1
        self.cluster.ask("PATCH", f"{path}/{app}/status", {"status": status}, kind="application/merge-patch+json")

    def replace_gone(self, stop: threading.Event) -> None:
        """What the ReplicaSet controller, which is not here, would do."""
        replaced: set[str] = set()
        while not stop.wait(0.1):
            for name in self.cluster.seen.gone - replaced:
                replaced.add(name)
                number = name.split("-")[1]
                self.cluster.create(Wish(f"next-{number}", 1000, 1024), "dispatchgym", owner=f"rs-{number}")

    def told(self, program: Program, begins: str, timeout_s: float = 60.0) -> list[str]:
        for _ in range(int(timeout_s / 0.2)):
            lines = [line for line in program.log.read_text(errors="replace").splitlines() if line.startswith(begins)]
            if lines:
                return lines
            time.sleep(0.2)
        return []


def extender_settings(port: int) -> Json:
    """Of an extender whose scores outweigh kube-scheduler's own."""
    return {
        "urlPrefix": f"http://127.0.0.1:{port}",
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "weight": 100,
        "nodeCacheCapable": True,
        "ignorable": True,
        "httpTimeout": "1s",
    }


SCENARIOS = ("default_scheduler", "with_extender", "learned", "second_scheduler", "repacking")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kubernetes.run", description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", type=Path, required=True, help="folder with etcd, kube-apiserver, kube-scheduler")
    parser.add_argument("--pods", type=int, default=300, help="length of the sequence (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each path for its speed (default %(default)s)")
    parser.add_argument("--nodes", type=int, default=32, help="(default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="some of the scenarios")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--logs", type=Path, help="keep the programs' logs in this folder")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dispatchgym-e2e-") as scratch:
        folder = options.logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with ControlPlane(options.binaries, folder) as plane:
            print(f"etcd and kube-apiserver are up, {plane.api_start_s:.1f} s for the latter", flush=True)
            run = Run(plane, options)
            run.cluster.add_nodes(options.nodes, NODE_CPU, NODE_GI)
            try:
                for name in options.only:
                    print(name.replace("_", " "), flush=True)
                    getattr(run, name)()
                    check(plane.api_is_running, f"{name.replace('_', ' ')}: the API server still runs")
            except Failed as failed:
                print(f"error: {failed}", file=sys.stderr)
                for program in [p for p in plane.programs if p.name.startswith(("extender", "second"))][-2:]:
                    tail = program.log.read_text(errors="replace").splitlines()[-20:]
                    print(f"--- end of {program.log.name}", *tail, sep="\n", file=sys.stderr)
                return 1
    print_table(run.rows)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    said = {"machine": machine, "seconds": round(time.monotonic() - begin), "rows": run.rows}
    if options.json:
        options.json.write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said))
    return 0


def print_table(rows: Sequence[Json]) -> None:
    titles = list(dict.fromkeys(title for row in rows for title in row))
    print("| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))
    for row in rows:
        print("| " + " | ".join(str(row.get(title, "")) for title in titles) + " |")


if __name__ == "__main__":
    random.seed(1)
    sys.exit(main())
