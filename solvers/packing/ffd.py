"""ffd: first-fit decreasing. Pods that arrive together go largest share of a node first; each to the first that fits.

The order is the queue's business: `decreasing` gives an instance whose pods of one priority and arrival are sorted.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.solvers.packing.first_fit import score as score


def decreasing(instance: PackingInstance) -> tuple[PackingInstance, np.ndarray]:
    """The instance with pods that arrive together ordered by falling size, and the old number of every new pod.

    Size is the largest share of any resource that the pod asks of the mean node.
    """
    pods, nodes = instance.pods, instance.nodes
    share = (pods.request / np.maximum(nodes.capacity.mean(axis=0), 1.0)).max(axis=1)
    if nodes.gpus.any():
        share = np.maximum(share, pods.gpus * pods.gpu_milli / (1000.0 * nodes.gpus.mean()))
    order = np.lexsort((np.arange(len(pods)), -share, pods.arrival))
    renamed = PackingInstance(
        instance.name, nodes, pods.take(order.tolist()), instance.workloads, instance.resources, instance.typical
    )
    return renamed, order
