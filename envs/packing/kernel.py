"""The dynamics of a cluster: filters, bind, evict, move, depart, wait.

One compiled core serves the single environment, the batch and the rules' rollouts. Every function works on
environment `i` of a batch. An action is a number below `Capacity.actions`:

    node * gpus + slot            bind the pod at hand there (slot: the GPU, or the first of them; 0 without)
    nodes * gpus + node           evict lower-priority pods from the node until the pod at hand fits, and bind it
    nodes * gpus + nodes + pod    pick up a running pod: it is at hand next, and its binding completes the move
    the last one                  WAIT: set the pod at hand aside until something changes
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.instance import FOREVER, WHOLE_GPU
from dispatchgym.envs.packing.state import (
    ASIDE,
    BIND,
    DEPART,
    EVICT,
    F64,
    FUTURE,
    GONE,
    I64,
    MOVE,
    QUEUED,
    RUNNING,
    U8,
    Cluster,
    Mode,
    Problem,
)

_WHOLE = WHOLE_GPU
_FOREVER = FOREVER
_ADD: Any = np.int64(1)  # typed: with plain numbers numba would compile `change` once for each
_TAKE: Any = np.int64(-1)


# --- entry points ---


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


# --- what fits ---


@inlined
def fits(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> bool:
    """Node n passes every filter for pod p as things stand."""
    k = cluster.env[i].slot
    w = problem.pod[k, p].workload
    if problem.allowed[k, w, n] == 0 or cluster.node[i, n].room < 1:
        return False
    for r in range(problem.request.shape[2]):
        if problem.request[k, p, r] > cluster.free[i, n, r]:
            return False
    need, milli = problem.pod[k, p].gpus, problem.pod[k, p].milli
    if need > 0:
        for g in range(problem.node[k, n].gpus):
            need -= cluster.gpu_free[i, n, g] >= milli
        if need > 0:
            return False
    for t in range(problem.size[k].num_anti):
        d = problem.anti_domain[k, t, n]
        if d >= 0 and (
            (problem.anti_owner[k, t, w] == 1 and cluster.domain[i, t, d].anti_match > 0)
            or (problem.anti_match[k, t, w] == 1 and cluster.domain[i, t, d].anti_owner > 0)
        ):
            return False
    for t in range(problem.size[k].num_spread):
        if problem.spread[k, t].owner != w:
            continue
        d = problem.spread_domain[k, t, n]
        if d < 0:
            return False
        least = cluster.domain[i, t, 0].spread
        for other in range(1, problem.spread[k, t].domains):
            least = min(least, cluster.domain[i, t, other].spread)
        if cluster.domain[i, t, d].spread + problem.spread_match[k, t, w] - least > problem.spread[k, t].skew:
            return False
    return True


@compiled
def fits_now(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> bool:
    """`fits`, compiled once: for callers that ask about few nodes."""
    return fits(problem, cluster, i, p, n)


@compiled
def best_slot(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> int:
    """The slot of a binding that leaves the choice to us: the fullest GPU that has the share, the first idle one."""
    k = cluster.env[i].slot
    milli = problem.pod[k, p].milli
    best, least = 0, _FOREVER
    if problem.pod[k, p].gpus > 0:
        for g in range(problem.node[k, n].gpus):
            free = cluster.gpu_free[i, n, g]
            if free >= milli and free < least:
                best, least = g, free
    return int(best)


@compiled
def fragments(problem: Problem, k: int, n: int, cpu: int, free: I64) -> float:
    """Expected fragments of node n with `cpu` milli-CPU and GPUs `free`, in GPU thousandths (FGD's F_n).

    Source: Weng et al., USENIX ATC 2023. For a typical pod that cannot run on the node, all that is free; for one
    that can, what is free on GPUs too full for it. A pod without GPUs makes a fragment of all.
    """
    gpus = problem.node[k, n].gpus
    total = 0
    for g in range(gpus):
        total += free[g]
    if total == 0:
        return 0.0
    result = 0.0
    for m in range(problem.size[k].num_typical):
        milli, need, models = problem.typical[k, m].milli, problem.typical[k, m].gpus, problem.typical[k, m].models
        lost = 0
        fit = 0
        for g in range(gpus):
            if free[g] < milli:
                lost += free[g]
            else:
                fit += 1
        model_ok = models == 0 or (models >> np.uint64(max(problem.node[k, n].model, 0))) & np.uint64(1) == 1
        if need == 0 or fit < need or cpu < problem.typical[k, m].cpu or not model_ok:
            lost = total
        result += problem.typical[k, m].share * lost
    return float(result)


# --- the queue and time ---


@inlined
def push(cluster: Cluster, i: int, p: int) -> None:
    """Put pod p into the queue, behind those of its priority."""
    cluster.pod[i, p].status = QUEUED
    cluster.pod[i, p].stamp = cluster.env[i].ticks
    cluster.env[i].ticks += 1
    cluster.queue[i, cluster.env[i].queued] = p
    cluster.env[i].queued += 1


@inlined
def drop_from_queue(cluster: Cluster, i: int, p: int) -> None:
    last = cluster.env[i].queued - 1
    for at in range(last + 1):
        if cluster.queue[i, at] == p:
            cluster.queue[i, at] = cluster.queue[i, last]
            cluster.env[i].queued = last
            return


@inlined
def set_aside(cluster: Cluster, i: int, p: int, declined: int) -> None:
    drop_from_queue(cluster, i, p)
    cluster.pod[i, p].declined = declined
    cluster.pod[i, p].status = ASIDE
    cluster.env[i].aside += 1


@compiled
def recall(problem: Problem, cluster: Cluster, mode: Mode, i: int, n: int) -> None:
    """Put pods set aside back into the queue if what has just left node n may make room for them.

    Where pods can be evicted or moved, or rules look beyond the node, that is any of them; and so it is of a pod
    that had a choice and was told to wait.
    """
    if cluster.env[i].aside == 0:
        return
    k = cluster.env[i].slot
    every = mode.evict or mode.moves > 0 or problem.size[k].num_anti > 0 or problem.size[k].num_spread > 0
    for p in range(cluster.env[i].next_pod):
        if cluster.pod[i, p].status != ASIDE:
            continue
        if every or cluster.pod[i, p].declined == 1 or fits_now(problem, cluster, i, p, n):
            cluster.env[i].aside -= 1
            push(cluster, i, p)


@compiled
def first_in_queue(problem: Problem, cluster: Cluster, i: int) -> int:
    """The queued pod of the highest priority, the longest queued among equals."""
    k = cluster.env[i].slot
    best = cluster.queue[i, 0]
    for at in range(1, cluster.env[i].queued):
        p = cluster.queue[i, at]
        ahead = problem.pod[k, p].priority - problem.pod[k, best].priority
        if ahead > 0 or (ahead == 0 and cluster.pod[i, p].stamp < cluster.pod[i, best].stamp):
            best = p
    return int(best)


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


# --- moves ---


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


@inlined
def lowest(slots: int) -> int:
    """Number of the lowest bit that is set; 0 for none."""
    g = 0
    while slots != 0 and (slots >> g) & 1 == 0:
        g += 1
    return g


@inlined
def slots_from(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int) -> int:
    """Bit set of the GPUs that pod p gets on node n: slot g, or the first whole ones from g on."""
    k = cluster.env[i].slot
    need = problem.pod[k, p].gpus
    milli = problem.pod[k, p].milli
    slots = 0
    while need > 0:
        if cluster.gpu_free[i, n, g] >= milli:
            slots |= 1 << g
            need -= 1
        g += 1
    return slots


@compiled
def hold(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int, n: int, slots: int) -> None:
    """Take what pod p needs from node n and these GPUs; the pod runs."""
    change(problem, cluster, i, p, n, slots, _ADD)
    if mode.fragments:
        refragment(problem, cluster, i, n)
    cluster.pod[i, p].status = RUNNING
    cluster.pod[i, p].host = n
    cluster.pod[i, p].slots = slots
    first = cluster.node[i, n].head
    cluster.pod[i, p].after = first
    cluster.pod[i, p].before = -1
    if first >= 0:
        cluster.pod[i, first].before = p
    cluster.node[i, n].head = p


@compiled
def release(problem: Problem, cluster: Cluster, mode: Mode, i: int, p: int) -> None:
    """Give back what pod p holds; the caller sets its status."""
    n = cluster.pod[i, p].host
    change(problem, cluster, i, p, n, cluster.pod[i, p].slots, _TAKE)
    if mode.fragments:
        refragment(problem, cluster, i, n)
    ahead, behind = cluster.pod[i, p].before, cluster.pod[i, p].after
    if ahead >= 0:
        cluster.pod[i, ahead].after = behind
    else:
        cluster.node[i, n].head = behind
    if behind >= 0:
        cluster.pod[i, behind].before = ahead
    cluster.pod[i, p].host = -1
    cluster.pod[i, p].slots = 0


@compiled
def refragment(problem: Problem, cluster: Cluster, i: int, n: int) -> None:
    """Bring the fragmentation of node n up to date."""
    for g in range(cluster.gpu_free.shape[2]):
        cluster.trial[g] = cluster.gpu_free[i, n, g]
    before = cluster.node[i, n].frag
    cluster.node[i, n].frag = fragments(problem, cluster.env[i].slot, n, cluster.free[i, n, 0], cluster.trial)
    cluster.env[i].frag_sum += cluster.node[i, n].frag - before


@compiled
def change(problem: Problem, cluster: Cluster, i: int, p: int, n: int, slots: int, sign: int) -> None:
    """Add (1) or take away (-1) pod p in every count of node n."""
    k = cluster.env[i].slot
    w = problem.pod[k, p].workload
    for r in range(problem.request.shape[2]):
        cluster.free[i, n, r] -= sign * problem.request[k, p, r]
    cluster.node[i, n].room -= sign
    cluster.env[i].running += sign
    if slots != 0:
        milli = problem.pod[k, p].milli
        for g in range(problem.node[k, n].gpus):
            if (slots >> g) & 1 == 1:
                cluster.gpu_free[i, n, g] -= sign * milli
        cluster.env[i].gpu_used += sign * milli * problem.pod[k, p].gpus
    for t in range(problem.size[k].num_anti):
        d = problem.anti_domain[k, t, n]
        if d >= 0:
            cluster.domain[i, t, d].anti_match += sign * problem.anti_match[k, t, w]
            cluster.domain[i, t, d].anti_owner += sign * problem.anti_owner[k, t, w]
    for t in range(problem.size[k].num_spread):
        d = problem.spread_domain[k, t, n]
        if d >= 0:
            cluster.domain[i, t, d].spread += sign * problem.spread_match[k, t, w]


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
def choose_victims(problem: Problem, cluster: Cluster, i: int, p: int, n: int) -> int:
    """Write the pods to evict from node n for pod p into `victims`; returns how many, 0 if it cannot be.

    As kube-scheduler's DefaultPreemption: take away all pods of lower priority; if p fits then, put them back
    from the highest priority on (the longest running first), keeping each with which p still fits.
    Nothing has changed afterwards.
    """
    k = cluster.env[i].slot
    count = 0
    q = cluster.node[i, n].head
    while q >= 0:
        behind = cluster.pod[i, q].after
        if problem.pod[k, q].priority < problem.pod[k, p].priority:
            cluster.victims[0, count] = q
            cluster.victims[1, count] = cluster.pod[i, q].slots
            count += 1
        q = behind
    if count == 0:
        return 0
    for v in range(1, count):  # the order in which they are put back
        q, slots = cluster.victims[0, v], cluster.victims[1, v]
        at = v
        while at > 0 and goes_back_before(problem, cluster, i, q, cluster.victims[0, at - 1]):
            cluster.victims[0, at] = cluster.victims[0, at - 1]
            cluster.victims[1, at] = cluster.victims[1, at - 1]
            at -= 1
        cluster.victims[0, at] = q
        cluster.victims[1, at] = slots
    for v in range(count):
        change(problem, cluster, i, cluster.victims[0, v], n, cluster.victims[1, v], _TAKE)
    possible = fits_now(problem, cluster, i, p, n)
    chosen = 0
    for v in range(count):
        q, slots = cluster.victims[0, v], cluster.victims[1, v]
        change(problem, cluster, i, q, n, slots, _ADD)
        if possible and not fits_now(problem, cluster, i, p, n):
            change(problem, cluster, i, q, n, slots, _TAKE)
            cluster.victims[0, chosen] = q
            cluster.victims[1, chosen] = slots
            chosen += 1
    for v in range(chosen):
        change(problem, cluster, i, cluster.victims[0, v], n, cluster.victims[1, v], _ADD)
    return chosen if possible else 0


@inlined
def goes_back_before(problem: Problem, cluster: Cluster, i: int, p: int, q: int) -> bool:
    """Pod p is more important than q: higher priority, then bound earlier, then the lower number."""
    k = cluster.env[i].slot
    ahead = problem.pod[k, p].priority - problem.pod[k, q].priority
    if ahead != 0:
        return bool(ahead > 0)
    earlier = cluster.pod[i, q].bound_at - cluster.pod[i, p].bound_at
    return bool(earlier > 0 or (earlier == 0 and p < q))


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
