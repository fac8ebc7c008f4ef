"""Columns that several graphs of a cluster share, and units."""

from __future__ import annotations

from dispatchgym.envs.api import Feature

SHARE = "share"
FLAG = "0 or 1"
MEAN = "mean nodes"

BIND = Feature("bind", FLAG, 0, 1, "binds the pod at hand")
EVICT = Feature("evict", FLAG, 0, 1, "evicts pods of lower priority and binds the pod at hand")
UNEVEN_AFTER = Feature("uneven_after", SHARE, 0, 1e3, "difference of the two")
VICTIMS = Feature("victims", "pods", 0, 1e6, "pods that it evicts")
POD_CPU = Feature("pod_cpu", SHARE, 0, 1e3, "CPU that the pod asks for")
POD_MEMORY = Feature("pod_memory", SHARE, 0, 1e3, "memory that the pod asks for")
MERIT = Feature("merit", "points", -1e6, 1e6, "what the rule that ranks the choices thinks of it")
LOG_CHOICES = Feature("log_choices", "log(1 + choices)", 0, 25, "choices of the list")
CLUSTER_CPU_FREE = Feature("cpu_free", SHARE, 0, 1, "CPU free in the cluster")
CLUSTER_MEMORY_FREE = Feature("memory_free", SHARE, 0, 1, "memory free in the cluster")
PENDING = Feature("pending", "pods per node", 0, 1e6, "pods that have arrived and do not run")
RUNNING = Feature("running", "pods per node", 0, 1e6, "pods that run")
HAND_CPU = Feature("cpu", MEAN, 0, 1e3, "CPU that the pod at hand asks for")
HAND_MEMORY = Feature("memory", MEAN, 0, 1e3, "memory that it asks for")
LIFTED = Feature("lifted", FLAG, 0, 1, "it has been picked up and must be put down")
LOG_NODES = Feature("log_nodes", "log(1 + nodes)", 0, 25, "machines of the cluster")
CLUSTER_GPU_FREE = Feature("gpu_free", SHARE, 0, 1, "GPUs free in the cluster")
CLUSTER_FRAGMENTS = Feature("fragments", SHARE, 0, 1, "expected fragments, of the cluster's GPUs")
ASKED = Feature("asked", SHARE, 0, 1e3, "GPUs that the pods so far asked for, of the cluster's")
