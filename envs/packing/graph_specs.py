"""What the complete graphs of a cluster show: node types, columns and links.

A decision is a choice among `choice` nodes: each stands for one legal action and points at the machine, and the pod
or GPU, that it concerns. Shares are of the machine's own capacity where nothing else is said; "mean node" is the
mean capacity of the cluster's machines. Pods that have not arrived do not appear.
"""

from __future__ import annotations

from dispatchgym.envs.api import Feature, GraphSpec, Link, NodeType
from dispatchgym.envs.packing import columns
from dispatchgym.envs.packing.columns import FLAG, MEAN, SHARE

_CHOICE = (
    columns.BIND,
    columns.EVICT,
    Feature("pick_up", FLAG, 0, 1, "picks up a running pod, to move it"),
    Feature("stay", FLAG, 0, 1, "puts a picked up pod back on the node it came from"),
    Feature("cpu_after", SHARE, -1e3, 1, "CPU free on the node afterwards"),
    Feature("memory_after", SHARE, -1e3, 1, "memory free on the node afterwards"),
    columns.UNEVEN_AFTER,
    Feature("least_after", SHARE, -1e3, 1, "the scarcest resource free on the node afterwards"),
    Feature("pods_after", SHARE, -1e3, 1, "pods that may still come afterwards"),
    Feature("slot_after", "GPUs", 0, 1, "free on the GPU it takes, afterwards; 0 without GPU"),
    Feature("gpu_after", "GPUs of 8", 0, 4, "free on the node afterwards"),
    Feature("idle_taken", "GPUs of 8", 0, 4, "idle GPUs that it takes"),
    Feature("twins", "GPUs of 8", 0, 4, "equally free GPUs of the node for which it stands"),
    Feature("fragments", "GPUs", -32, 32, "rise of the node's expected fragments (FGD); 0 if they are not kept"),
    Feature("siblings", "pods", 0, 1e6, "pods of the same ReplicaSet on the node"),
    columns.VICTIMS,
    Feature("victim_tier", SHARE, 0, 1, "highest tier among them, of all tiers; 0 without"),
    columns.POD_CPU,
    columns.POD_MEMORY,
)
_NODE = (
    Feature("cpu_free", SHARE, 0, 1, "CPU free"),
    Feature("memory_free", SHARE, 0, 1, "memory free"),
    Feature("cpu", MEAN, 0, 1e3, "CPU capacity"),
    Feature("memory", MEAN, 0, 1e3, "memory capacity"),
    Feature("room", SHARE, 0, 1, "pods that may still come"),
    Feature("gpus", "GPUs of 8", 0, 4, "GPUs"),
    Feature("gpu_free", "GPUs of 8", 0, 4, "GPUs free, shares added up"),
    Feature("gpu_idle", "GPUs of 8", 0, 4, "GPUs that nobody uses"),
    Feature("fragments", "GPUs", 0, 32, "expected fragments (FGD); 0 if they are not kept"),
    Feature("fits", FLAG, 0, 1, "the pod at hand fits"),
    Feature("cpu_lower", SHARE, 0, 1, "CPU held by pods of lower priority than the one at hand"),
    Feature("memory_lower", SHARE, 0, 1, "memory held by them"),
    Feature("cpu_short", SHARE, 0, 1e3, "CPU that the pod at hand lacks here"),
    Feature("memory_short", SHARE, 0, 1e3, "memory that it lacks"),
)
_POD = (
    Feature("at_hand", FLAG, 0, 1, "it is to be decided on"),
    Feature("running", FLAG, 0, 1, "it runs"),
    Feature("queued", FLAG, 0, 1, "it will be decided on at this moment"),
    Feature("aside", FLAG, 0, 1, "it waits for a change"),
    Feature("tier", SHARE, 0, 1, "rank of its priority, of all tiers"),
    Feature("lower", FLAG, 0, 1, "its priority is below that of the pod at hand"),
    Feature("cpu", MEAN, 0, 1e3, "CPU that it asks for"),
    columns.HAND_MEMORY,
    Feature("gpu", "GPUs", 0, 32, "GPUs that it asks for, shares included"),
    Feature("log_age", "log(1 + seconds)", 0, 50, "since it was bound; 0 if it does not run"),
)
_CLASS = (
    Feature("cpu", MEAN, 0, 1e3, "CPU that its pods ask for"),
    Feature("memory", MEAN, 0, 1e3, "memory that they ask for"),
    Feature("gpu", "GPUs", 0, 32, "GPUs that they ask for, shares included"),
    Feature("tier", SHARE, 0, 1, "rank of their priority, of all tiers"),
    Feature("running", SHARE, 0, 1, "of the pods that have arrived"),
    Feature("pending", SHARE, 0, 1, "of the pods that have arrived"),
    Feature("at_hand", FLAG, 0, 1, "the pod at hand is one of them"),
)
_GPU = (
    Feature("free", "GPUs", 0, 1, "free"),
    Feature("idle", FLAG, 0, 1, "nobody uses it"),
    Feature("fits", FLAG, 0, 1, "it has what the pod at hand asks of a GPU"),
    Feature("after", "GPUs", -1, 1, "free minus what the pod at hand asks of a GPU"),
)
_TYPICAL = (
    Feature("cpu", MEAN, 0, 1e3, "CPU asked for"),
    Feature("gpus", "GPUs of 8", 0, 4, "GPUs asked for"),
    Feature("share", "GPUs", 0, 1, "of each of them"),
    Feature("frequency", SHARE, 0, 1, "of the typical pods"),
    Feature("like_hand", FLAG, 0, 1, "the pod at hand asks for the same"),
    Feature("fits", SHARE, 0, 1, "nodes that have the CPU, the GPUs and the model for it"),
)
_CLUSTER = (
    Feature("wait", FLAG, 0, 1, "WAIT is legal"),
    Feature("log_choices", "log(1 + choices)", 0, 25, "legal actions but WAIT"),
    columns.CLUSTER_CPU_FREE,
    columns.CLUSTER_MEMORY_FREE,
    columns.CLUSTER_GPU_FREE,
    columns.CLUSTER_FRAGMENTS,
    columns.ASKED,
    columns.PENDING,
    columns.RUNNING,
    columns.HAND_CPU,
    columns.HAND_MEMORY,
    Feature("gpu", "GPUs", 0, 32, "GPUs that it asks for, shares included"),
    Feature("tier", SHARE, 0, 1, "rank of its priority, of all tiers"),
    columns.LIFTED,
    Feature("log_moves_left", "log(1 + moves)", 0, 50, "moves that may still be made"),
    columns.LOG_NODES,
)

PODS = GraphSpec(
    family="packing",
    graph="pods",
    version=0,
    nodes=(
        NodeType("choice", _CHOICE),
        NodeType("pod", _POD),
        NodeType("node", _NODE),
        NodeType("class", _CLASS),
        NodeType("cluster", _CLUSTER),
    ),
    links=(
        Link("host", "choice", "node"),
        Link("about", "choice", "pod"),
        Link("on", "pod", "node"),
        Link("of", "pod", "class"),
        Link("hand", "cluster", "pod"),
    ),
    candidate="choice",
    context="cluster",
)
"""A node a pod that runs or waits, with machine and workload-class hubs."""

GPUS = GraphSpec(
    family="packing",
    graph="gpus",
    version=0,
    nodes=(
        NodeType("choice", _CHOICE),
        NodeType("gpu", _GPU),
        NodeType("node", _NODE),
        NodeType("typical", _TYPICAL),
        NodeType("cluster", _CLUSTER),
    ),
    links=(
        Link("host", "choice", "node"),
        Link("about", "choice", "gpu"),
        Link("on", "gpu", "node"),
        Link("hand", "cluster", "typical"),
    ),
    candidate="choice",
    context="cluster",
)
"""A node a GPU with something free, machine hubs, and the request classes that are typical of the workload."""

SPECS = {"pods": PODS, "gpus": GPUS}
