"""The one validator that judges every run of every env, rule and solver.

Plain Python that replays the log, event by event, and asks of each whether it was allowed. Nothing here is shared
with the kernel, so that an error in it cannot hide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.packing.instance import FOREVER, WHOLE_GPU, PackingInstance
from dispatchgym.envs.packing.log import Event


def validate(events: Iterable[Event], instance: PackingInstance) -> dict[int, int]:
    """Return pod -> node of what runs at the end if every event was allowed, raise at the first that was not.

    Checked: events are in order of time; pods are bound after their arrival, once at a time, and not after they
    have left; a pod leaves exactly when its lifetime is over; no node holds more than its resources, its pods or
    its GPUs allow; binding and moving respect closed nodes, taints, selectors, affinity, GPU models, anti-affinity
    (both ways) and topology spread; evictions are for the sake of a pod of higher priority, which is bound to that
    node before anything else happens.

    Raises:
        InvalidScheduleError: naming the event, the pod and the node.
    """
    replay = _Replay(instance)
    for number, event in enumerate(events):
        try:
            replay.apply(event)
        except _BrokenRuleError as broken:
            pod = instance.pods.names[event.pod] if 0 <= event.pod < instance.num_pods else event.pod
            raise InvalidScheduleError(
                f"event {number} ({event.kind} pod {pod!r}, node {event.node}, time {event.time}): {broken}"
            ) from None
    if replay.owed is not None:
        raise InvalidScheduleError(f"pods were evicted for pod {replay.owed[0]}, which was not bound afterwards")
    return {pod: node for pod, (node, _) in sorted(replay.where.items())}


class _BrokenRuleError(Exception):
    pass


class _Replay:
    """A cluster in dictionaries: who runs where, on which GPUs."""

    def __init__(self, instance: PackingInstance) -> None:
        self.instance = instance
        self.where: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.on: list[dict[int, tuple[int, ...]]] = [{} for _ in range(instance.num_nodes)]  # the same, a node each
        self.leaves: dict[int, int] = {}
        self.due: list[tuple[int, int]] = []  # a heap of all that was ever put into `leaves`
        self.gone: set[int] = set()
        self.knows_anti_affinity = any(workload.anti_affinity for workload in instance.workloads)
        self.now = 0
        self.owed: tuple[int, int] | None = None  # pod and node: somebody has been evicted for it

    def apply(self, event: Event) -> None:
        if not 0 <= event.pod < self.instance.num_pods:
            raise _BrokenRuleError(f"there are {self.instance.num_pods} pods")
        if not 0 <= event.node < self.instance.num_nodes:
            raise _BrokenRuleError(f"there are {self.instance.num_nodes} nodes")
        if event.time < self.now:
            raise _BrokenRuleError(f"the event before it was at time {self.now}")
        self.now = event.time
        if event.kind != "depart":
            while self.due and self.due[0][0] < event.time:
                when, pod = heappop(self.due)
                if self.leaves.get(pod) == when:
                    raise _BrokenRuleError(f"pod {pod} should have left at {when}")
        if self.owed is not None and event.kind not in ("evict", "bind"):
            raise _BrokenRuleError(f"pods were evicted for pod {self.owed[0]}, which is not bound yet")
        if event.kind == "bind":
            self.bind(event)
        elif event.kind == "move":
            self.move(event)
        elif event.kind == "evict":
            self.evict(event)
        else:
            self.depart(event)

    def bind(self, event: Event) -> None:
        if event.pod in self.where:
            raise _BrokenRuleError(f"it already runs on node {self.where[event.pod][0]}")
        if event.pod in self.gone:
            raise _BrokenRuleError("it is done and gone")
        if event.time < self.instance.pods.arrival[event.pod]:
            raise _BrokenRuleError(f"it arrives only at {self.instance.pods.arrival[event.pod]}")
        if self.owed is not None:
            if self.owed != (event.pod, event.node):
                raise _BrokenRuleError(f"pods were evicted from node {self.owed[1]} for pod {self.owed[0]}")
            self.owed = None
        self.check_filters(event.pod, event.node)
        self.place(event)
        life = int(self.instance.pods.lifetime[event.pod])
        if life != FOREVER:
            self.leaves[event.pod] = event.time + life
            heappush(self.due, (event.time + life, event.pod))

    def move(self, event: Event) -> None:
        old = self.where.pop(event.pod, None)
        if old is None:
            raise _BrokenRuleError("it does not run")
        if event.cause != old[0]:
            raise _BrokenRuleError(f"it ran on node {old[0]}, not on {event.cause}")
        if (event.node, event.slots) == old:
            raise _BrokenRuleError("it is there already")
        del self.on[old[0]][event.pod]
        self.check_filters(event.pod, event.node)
        self.place(event)

    def evict(self, event: Event) -> None:
        self.remove(event)
        if not 0 <= event.cause < self.instance.num_pods:
            raise _BrokenRuleError(f"it is evicted for pod {event.cause}, which does not exist")
        if self.instance.pods.arrival[event.cause] > event.time:
            raise _BrokenRuleError(f"it is evicted for pod {event.cause}, which has not arrived")
        mine, theirs = (int(self.instance.pods.priority[p]) for p in (event.pod, event.cause))
        if mine >= theirs:
            raise _BrokenRuleError(f"its priority {mine} is not below {theirs}, that of the pod it is evicted for")
        if self.owed is not None and self.owed != (event.cause, event.node):
            raise _BrokenRuleError(f"pods were evicted for pod {self.owed[0]}, which is not bound yet")
        self.owed = event.cause, event.node
        self.leaves.pop(event.pod, None)

    def depart(self, event: Event) -> None:
        due = self.leaves.pop(event.pod, None)
        if due != event.time:
            raise _BrokenRuleError(f"it leaves at {due}" if due is not None else "it stays for ever")
        self.remove(event)
        self.gone.add(event.pod)

    def remove(self, event: Event) -> None:
        held = self.where.pop(event.pod, None)
        if held != (event.node, event.slots):
            raise _BrokenRuleError(f"it holds {held}, not {(event.node, event.slots)}")
        del self.on[event.node][event.pod]

    def place(self, event: Event) -> None:
        """Put the pod there and check the capacity of the node."""
        pods, nodes, n = self.instance.pods, self.instance.nodes, event.node
        need = int(pods.gpus[event.pod])
        if len(set(event.slots)) != need:
            raise _BrokenRuleError(f"it asks for {need} GPUs and gets {len(set(event.slots))}")
        self.where[event.pod] = n, event.slots
        self.on[n][event.pod] = event.slots
        here = list(self.on[n].items())
        if len(here) > nodes.max_pods[n]:
            raise _BrokenRuleError(f"the node would hold {len(here)} pods; it takes {nodes.max_pods[n]}")
        for r, resource in enumerate(self.instance.resources):
            used, has = sum(int(pods.request[p, r]) for p, _ in here), int(nodes.capacity[n, r])
            if used > has:
                raise _BrokenRuleError(f"the node would use {used} of {has} {resource}")
        gpu = [0] * int(nodes.gpus[n])
        for p, slots in here:
            for g in slots:
                if not 0 <= g < len(gpu):
                    raise _BrokenRuleError(f"GPU {g} does not exist; the node has {len(gpu)}")
                gpu[g] += int(pods.gpu_milli[p])
                if gpu[g] > WHOLE_GPU:
                    raise _BrokenRuleError(f"GPU {g} would be used {gpu[g]}/{WHOLE_GPU}")

    def check_filters(self, pod: int, node: int) -> None:
        """The rules of placement, with the pod itself not yet counted."""
        instance = self.instance
        mine, nodes = instance.workloads[instance.pods.workload[pod]], instance.nodes
        labels = nodes.labels[node]
        if nodes.unschedulable[node]:
            raise _BrokenRuleError("the node is closed")
        for taint in nodes.taints[node]:
            if taint.effect != "PreferNoSchedule" and not any(t.tolerates(taint) for t in mine.tolerations):
                raise _BrokenRuleError(f"it does not tolerate taint {taint.key}={taint.value}")
        if not _selected(mine.selector, labels) or not mine.accepts(labels):
            raise _BrokenRuleError("its selector or affinity does not allow the node")
        if mine.models and nodes.models[node] not in mine.models:
            raise _BrokenRuleError(f"it wants one of {mine.models}, the node has {nodes.models[node]!r}")
        for other, (place, _) in self.where.items() if self.knows_anti_affinity else ():
            theirs = instance.workloads[instance.pods.workload[other]]
            there = nodes.labels[place]
            for term in mine.anti_affinity:
                if _same(term.topology, labels, there) and theirs.has_labels(term.match):
                    raise _BrokenRuleError(f"its anti-affinity forbids pod {other} in the same {term.topology}")
            for term in theirs.anti_affinity:
                if _same(term.topology, labels, there) and mine.has_labels(term.match):
                    raise _BrokenRuleError(f"pod {other} forbids it in the same {term.topology}")
        for rule in mine.spread:
            count: dict[str, int] = {
                own[rule.topology]: 0 for own in nodes.labels if rule.topology in own and mine.accepts(own)
            }
            if labels.get(rule.topology) not in count:
                raise _BrokenRuleError(f"the node has no label {rule.topology} to spread over")
            for other, (place, _) in self.where.items():
                theirs, there = instance.workloads[instance.pods.workload[other]], nodes.labels[place]
                if theirs.has_labels(rule.match) and rule.topology in there and mine.accepts(there):
                    count[there[rule.topology]] += 1
            skew = count[labels[rule.topology]] + mine.has_labels(rule.match) - min(count.values())
            if skew > rule.max_skew:
                raise _BrokenRuleError(f"skew over {rule.topology} would be {skew}; at most {rule.max_skew} is allowed")


def _selected(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector)


def _same(topology: str, first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    return topology in first and first[topology] == second.get(topology)
