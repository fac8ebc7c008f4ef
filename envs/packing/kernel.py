"""The dynamics of a cluster: bind, evict, move, depart, wait.

One compiled core serves the single environment, the batch and the rules' rollouts. Every function works on
environment `i` of a batch. An action is a number below `Capacity.actions`:

    node * gpus + slot            bind the pod at hand there (slot: the GPU, or the first of them; 0 without)
    nodes * gpus + node           evict lower-priority pods from the node until the pod at hand fits, and bind it
    nodes * gpus + nodes + pod    pick up a running pod: it is at hand next, and its binding completes the move
    the last one                  WAIT: set the pod at hand aside until something changes
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.fitting import best_slot, fits, lowest, slots_from
from dispatchgym.envs.packing.holding import hold, refragment, release
from dispatchgym.envs.packing.instance import FOREVER, WHOLE_GPU
from dispatchgym.envs.packing.state import (
    BIND,
    DEPART,
    EVICT,
    F64,
    FUTURE,
    GONE,
    I64,
    MOVE,
    RUNNING,
    U8,
    Cluster,
    Mode,
    Problem,
)
from dispatchgym.envs.packing.victims import choose_victims
from dispatchgym.envs.packing.waiting import drop_from_queue, first_in_queue, push, recall, set_aside

_WHOLE = WHOLE_GPU
_FOREVER = FOREVER


@compiled
def reset_all(problem: Problem, cluster: Cluster, mode: Mode, which: U8) -> None:
    """Start the flagged environments anew."""
    for i in range(len(which)):
        if which[i]:
            reset(problem, cluster, mode, i)


@compiled
def step_all(problem: Problem, cluster: Cluster, mode: Mode, actions: I64, reward: F64, over: np.ndarray) -> int:
    """Carry out one action in every environment that is not over; returns the first with an illegal one, else -1."""
    for i in range(len(actions)):
        a = actions[i]
        if cluster.env[i].over == 0 and (a < 0 or a >= cluster.mask.shape[1] or cluster.mask[i, a] == 0):
            return i
    for i in range(len(actions)):
        reward[i] = 0.0
        if cluster.env[i].over == 0:
            reward[i] = step(problem, cluster, mode, i, actions[i])
        over[i] = cluster.env[i].over == 1
    return -1


@compiled
def reset(problem: Problem, cluster: Cluster, mode: Mode, i: int) -> None:
    """Start environment i anew: an empty cluster, before the first arrival."""
    k = cluster.env[i].slot
    for n in range(cluster.free.shape[1]):
        for r in range(cluster.free.shape[2]):
            cluster.free[i, n, r] = problem.capacity[k, n, r]
        cluster.node[i, n].room = problem.node[k, n].max_pods
        for g in range(cluster.gpu_free.shape[2]):
            cluster.gpu_free[i, n, g] = _WHOLE if g < problem.node[k, n].gpus else 0
        cluster.node[i, n].head = -1
        cluster.node[i, n].frag = 0.0
    for p in range(cluster.pod.shape[1]):
        cluster.pod[i, p].status = FUTURE
        cluster.pod[i, p].host = -1
        cluster.pod[i, p].slots = 0
    for t in range(cluster.domain.shape[1]):
        for d in range(cluster.domain.shape[2]):
            cluster.domain[i, t, d].spread = 0
            cluster.domain[i, t, d].anti_match = 0
            cluster.domain[i, t, d].anti_owner = 0
    for c in range(cluster.env[i].num_options):
        cluster.mask[i, cluster.options[i, c]] = 0
    cluster.env[i].num_options = 0
    cluster.env[i].hand = -1
    cluster.env[i].queued = 0
    cluster.env[i].lifted = 0
    cluster.env[i].next_pod = 0
    cluster.env[i].running = 0
    cluster.env[i].aside = 0
    cluster.env[i].moves_left = mode.moves
    cluster.env[i].now = 0
    cluster.env[i].ticks = 0
    cluster.env[i].over = 0
    cluster.env[i].decisions = 0
    cluster.env[i].moved = 0
    cluster.env[i].evicted = 0
    cluster.env[i].gpu_used = 0
    cluster.env[i].gpu_asked = 0
    cluster.env[i].gpu_time = 0.0
    cluster.env[i].wait_time = 0.0
    cluster.env[i].logged = 0
    cluster.env[i].frag_sum = 0.0
    if mode.fragments:
        for n in range(problem.size[k].num_nodes):
            refragment(problem, cluster, i, n)
    next_decision(problem, cluster, mode, i)


@compiled
def step(problem: Problem, cluster: Cluster, mode: Mode, i: int, action: int) -> float:
    """Carry out a legal action; returns the reward."""
    k = cluster.env[i].slot
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    p = cluster.env[i].hand
    cluster.env[i].decisions += 1
    used, broken, moved = cluster.env[i].gpu_used, cluster.env[i].frag_sum, cluster.env[i].moved
    reward = 0.0
    if action == cluster.mask.shape[1] - 1:
        set_aside(cluster, i, p, 1)
    elif action < nodes * gpus:
        n, g = action // gpus, action % gpus
        if cluster.env[i].lifted == 1:
            put_down(problem, cluster, mode, i, p, n, g)
        else:
            bind(problem, cluster, mode, i, p, n, g)
            reward += mode.placed * mode.tier ** problem.pod[k, p].tier
    elif action < nodes * gpus + nodes:
        n = action - nodes * gpus
        count = choose_victims(problem, cluster, i, p, n)
        for v in range(count):
            q = cluster.victims[0, v]
            reward -= mode.eviction + mode.placed * mode.tier ** problem.pod[k, q].tier
            evict(problem, cluster, mode, i, q, p)
        bind(problem, cluster, mode, i, p, n, best_slot(problem, cluster, i, p, n))
        reward += mode.placed * mode.tier ** problem.pod[k, p].tier
    else:
        lift(problem, cluster, mode, i, action - nodes * gpus - nodes)
    gained = float(cluster.env[i].gpu_used - used)
    reward += mode.gpu * gained / 1000.0 - mode.fragmentation * (cluster.env[i].frag_sum - broken) / 1000.0
    reward -= mode.move * float(cluster.env[i].moved - moved)
    if cluster.env[i].lifted == 1:
        offer(problem, cluster, mode, i, cluster.env[i].hand)
    else:
        next_decision(problem, cluster, mode, i)
    return float(reward)


@compiled
def next_decision(problem: Problem, cluster: Cluster, mode: Mode, i: int) -> None:
    """Bring the next pod to hand that has a choice, letting time pass as needed; or end the episode."""
    while True:
        while cluster.env[i].queued > 0:
            p = first_in_queue(problem, cluster, i)
            if offer(problem, cluster, mode, i, p):
                cluster.env[i].hand = p
                return
            set_aside(cluster, i, p, 0)
        if not pass_time(problem, cluster, mode, i):
            break
    for c in range(cluster.env[i].num_options):
        cluster.mask[i, cluster.options[i, c]] = 0
    cluster.env[i].num_options = 0
    cluster.env[i].hand = -1
    cluster.env[i].over = 1


@compiled
def pass_time(problem: Problem, cluster: Cluster, mode: Mode, i: int) -> bool:
    """Advance to the next arrival or departure that can matter and carry it out; False if there is none."""
    k = cluster.env[i].slot
    arrives = cluster.env[i].next_pod
    pods = problem.size[k].num_pods
    then = problem.pod[k, arrives].arrival if arrives < pods else _FOREVER
    if arrives == pods and cluster.env[i].aside == 0:
        return False
    leaves = _FOREVER
    for p in range(arrives):
        if cluster.pod[i, p].status == RUNNING and cluster.pod[i, p].leaves < leaves:
            leaves = cluster.pod[i, p].leaves
    then = min(then, leaves)
    if then == _FOREVER:
        return False
    passed = float(then - cluster.env[i].now)
    cluster.env[i].gpu_time += passed * cluster.env[i].gpu_used / 1000.0
    cluster.env[i].wait_time += passed * cluster.env[i].aside
    cluster.env[i].now = then
    if leaves == then:
        for p in range(arrives):
            if cluster.pod[i, p].status == RUNNING and cluster.pod[i, p].leaves == then:
                n = cluster.pod[i, p].host
                write(cluster, i, DEPART, p, n, cluster.pod[i, p].slots, -1)
                release(problem, cluster, mode, i, p)
                cluster.pod[i, p].status = GONE
                recall(problem, cluster, mode, i, n)
    while arrives < pods and problem.pod[k, arrives].arrival == then:
        cluster.env[i].gpu_asked += problem.pod[k, arrives].gpus * problem.pod[k, arrives].milli
        push(cluster, i, arrives)
        arrives += 1
    cluster.env[i].next_pod = arrives
    return True


@inlined
def write(cluster: Cluster, i: int, kind: int, p: int, n: int, slots: int, cause: int) -> None:
    """Add a row to the log."""
    row = cluster.log[i, cluster.env[i].logged]
    row[0] = cluster.env[i].now
    row[1] = kind
    row[2] = p
    row[3] = n
    row[4] = slots
    row[5] = cause
    cluster.env[i].logged += 1


@compiled
def bind(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int, n: int, g: int) -> None:
    """Bind queued pod p to node n."""
    k = cluster.env[i].slot
    drop_from_queue(cluster, i, p)
    slots = slots_from(problem, cluster, i, p, n, g)
    hold(problem, cluster, mode, i, p, n, slots)
    write(cluster, i, BIND, p, n, slots, -1)
    cluster.pod[i, p].bound_at = cluster.env[i].now
    life = problem.pod[k, p].lifetime
    cluster.pod[i, p].leaves = _FOREVER if life == _FOREVER else cluster.env[i].now + life
    if problem.size[k].num_spread > 0:
        recall(problem, cluster, mode, i, n)  # the emptiest domain may have caught up


@compiled
def evict(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int, cause: int) -> None:
    """Send running pod p back to the queue, where a new copy of it starts anew."""
    n = cluster.pod[i, p].host
    write(cluster, i, EVICT, p, n, cluster.pod[i, p].slots, cause)
    release(problem, cluster, mode, i, p)
    push(cluster, i, p)
    cluster.env[i].evicted += 1
    recall(problem, cluster, mode, i, n)


@compiled
def lift(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int) -> None:
    """Pick running pod p up: where it may go is the next decision, staying included."""
    cluster.env[i].origin = cluster.pod[i, p].host
    cluster.env[i].origin_slots = cluster.pod[i, p].slots
    release(problem, cluster, mode, i, p)
    cluster.env[i].hand = p
    cluster.env[i].lifted = 1
    cluster.env[i].moves_left -= 1


@compiled
def put_down(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int, n: int, g: int) -> None:
    """Bind the pod that was picked up; elsewhere, that is a move. Its departure stays as it was."""
    old, back = cluster.env[i].origin, lowest(cluster.env[i].origin_slots)
    stays = n == old and cluster.gpu_free[i, n, g] == cluster.gpu_free[i, n, back]
    slots = cluster.env[i].origin_slots if stays else slots_from(problem, cluster, i, p, n, g)
    cluster.env[i].lifted = 0
    hold(problem, cluster, mode, i, p, n, slots)
    if not stays:
        cluster.env[i].moved += 1
        write(cluster, i, MOVE, p, n, slots, old)
        recall(problem, cluster, mode, i, old)


@compiled
def offer(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int) -> bool:
    """Set the legal actions for pod p; False (and none but WAIT) if it can only wait."""
    k = cluster.env[i].slot
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    for c in range(cluster.env[i].num_options):
        cluster.mask[i, cluster.options[i, c]] = 0
    count = 0
    milli = problem.pod[k, p].milli
    for n in range(problem.size[k].num_nodes):
        if not fits(problem, cluster, i, p, n):
            if cluster.env[i].lifted == 1 and n == cluster.env[i].origin:  # a running pod may always stay
                cluster.options[i, count] = n * gpus + lowest(cluster.env[i].origin_slots)
                count += 1
            continue
        if problem.pod[k, p].gpus == 0:
            cluster.options[i, count] = n * gpus
            count += 1
            continue
        for g in range(problem.node[k, n].gpus):
            free = cluster.gpu_free[i, n, g]
            if free < milli:
                continue
            twin = False  # GPUs of a node that are equally free are one choice
            for earlier in range(g):
                twin = twin or cluster.gpu_free[i, n, earlier] == free
            if not twin:
                cluster.options[i, count] = n * gpus + g
                count += 1
    if cluster.env[i].lifted == 0:
        if mode.evict:
            binds, at = count, 0
            for n in range(problem.size[k].num_nodes):
                while at < binds and cluster.options[i, at] < n * gpus:
                    at += 1
                if at < binds and cluster.options[i, at] < (n + 1) * gpus:
                    continue  # it fits without eviction
                if problem.allowed[k, problem.pod[k, p].workload, n] and choose_victims(problem, cluster, i, p, n):
                    cluster.options[i, count] = nodes * gpus + n
                    count += 1
        if cluster.env[i].moves_left > 0:
            for q in range(cluster.env[i].next_pod):
                if cluster.pod[i, q].status == RUNNING:
                    cluster.options[i, count] = nodes * gpus + nodes + q
                    count += 1
        if count > 0:
            cluster.options[i, count] = cluster.mask.shape[1] - 1
            count += 1
    cluster.env[i].num_options = count
    for c in range(count):
        cluster.mask[i, cluster.options[i, c]] = 1
    return count > 0
