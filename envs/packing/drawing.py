"""A cluster as text: a line a node, with bars for CPU and memory, a digit a GPU, and the pods on it."""

from __future__ import annotations

from dispatchgym.envs.packing.instance import WHOLE_GPU, PackingInstance
from dispatchgym.envs.packing.log import Log

_BAR = 10


def text(instance: PackingInstance, log: Log) -> str:
    """What runs where after the events of the log.

    A GPU is drawn as its use in tenths: '.' for none, '1' to '9', '#' for all of it.
    """
    runs: dict[int, tuple[int, tuple[int, ...]]] = {}
    for event in log.events():
        if event.kind in ("bind", "move"):
            runs[event.pod] = event.node, event.slots
        else:
            del runs[event.pod]
    pods, nodes = instance.pods, instance.nodes
    width = max(map(len, nodes.names))
    lines = []
    for n, name in enumerate(nodes.names):
        here = sorted(p for p, (node, _) in runs.items() if node == n)
        bars = []
        for r, resource in enumerate(instance.resources[:2]):
            used, has = sum(int(pods.request[p, r]) for p in here), max(1, int(nodes.capacity[n, r]))
            filled = round(_BAR * used / has)
            bars.append(f"{resource} [{'#' * filled:{_BAR}}] {100 * used // has:3} %")
        gpu = [0] * int(nodes.gpus[n])
        for p in here:
            for g in runs[p][1]:
                gpu[g] += int(pods.gpu_milli[p])
        cards = "".join("." if use == 0 else "#" if use == WHOLE_GPU else str(max(1, use // 100)) for use in gpu)
        lines.append(f"{name:{width}}  {'  '.join(bars)}  {cards:8}  {' '.join(pods.names[p] for p in here)}".rstrip())
    return "\n".join(lines)
