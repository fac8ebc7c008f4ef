"""Local search over placements: make room for one pending pod after another by shuffling the pods of a few nodes.

A round takes a pending pod and a few nodes with much left over, puts the pod on one of them though it may not fit, and
then moves and swaps pods among these nodes until none holds more than it has (tabu search on the overload, Glover
1989). If that fails everything goes back, and the pod's next round takes more nodes. Where room is short, the round
also takes a pod away: one of lower priority or, among equals, a larger one. So rounds only ever raise the placed
pods, compared by priority, or lower what they use.

One compiled core on plain arrays. Draws come from a splitmix64 stream kept in `Board.draws`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.state import F64, I64, U8

_NEVER = -(2**62)
_EXACT = 1e-9  # what sums of scaled whole numbers may be off

WILD_SHARE = 0.2
"""Rounds that take any pending pod instead of the most urgent and smallest."""
EXCHANGE_SHARE = 0.1
"""Rounds that take a pod away though there seems to be room."""
FEWEST_NODES = 3.0
"""Of a round; up to as many more are drawn."""
NODES_A_FAILURE = 0.5
"""More nodes for each round of the pod that failed."""
NODE_NOISE = 0.7
"""How far nodes are drawn instead of taken by what they have left."""
LOOKS_A_POD = 60
"""Changes that a round looks at, for each pod it may move, before it gives up."""
TENURE, MORE_TENURE = 3, 7
"""Changes for which a moved pod stays where it is, and draws on top."""


class Board(NamedTuple):
    """A cluster with everything the search reads and writes; all that is not placed has host -1."""

    request: I64  # (pods, resources)
    scale: F64  # (resources,): 1 / mean capacity of a node
    size: F64  # (pods,): sum of scaled requests
    tier: I64  # (pods,): rank of the priority, 0 the lowest
    allowed: U8  # (workloads, nodes)
    workload: I64  # (pods,)
    movable: U8  # (pods,): may be placed, moved and taken away
    host: I64  # (pods,)
    free: I64  # (nodes, resources)
    room: I64  # (nodes,): pods that may come
    placed: I64  # (tiers,): pods that run
    failures: F64  # (pods,): rounds since the pod could last be placed, fading
    draws: I64  # (1,): state of the random stream
    nodes: I64  # (nodes,): scratch, the round's nodes
    pool: I64  # (pods,): scratch, the pods it may move
    before: I64  # (pods,): scratch, where they were
    tabu: I64  # (pods,): scratch, the change from which the pod may move again
    key: F64  # (nodes,): scratch
    looks: I64  # (1,): changes looked at so far


@compiled
def search(board: Board, looks: int) -> int:
    """Rounds until so many changes have been looked at or all is placed; returns how many succeeded."""
    gained = 0
    until = board.looks[0] + looks
    while board.looks[0] < until:
        p = next_target(board)
        if p < 0:
            break
        if play_round(board, p):
            gained += 1
            board.failures[p] = 0.0
            for a in range(len(board.failures)):
                board.failures[a] *= 0.5
        else:
            board.failures[p] += 1.0
    return gained


@inlined
def draw(board: Board) -> float:
    """A number in [0, 1): one splitmix64 step (Steele, Lea and Flood 2014)."""
    z = np.uint64(board.draws[0]) + np.uint64(0x9E3779B97F4A7C15)
    board.draws[0] = np.int64(z)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def may(board: Board, p: int, n: int) -> bool:
    """The filters let pod p run on node n."""
    return bool(board.allowed[board.workload[p], n] == 1)


@inlined
def overload(board: Board, n: int, more: int, less: int) -> float:
    """What node n holds beyond its capacity, in shares of a node, with pod `more` and without pod `less` (-1: none)."""
    total = 0.0
    for r in range(board.free.shape[1]):
        left = board.free[n, r]
        if more >= 0:
            left -= board.request[more, r]
        if less >= 0:
            left += board.request[less, r]
        if left < 0:
            total -= left * board.scale[r]
    left = board.room[n] - (more >= 0) + (less >= 0)
    if left < 0:
        total -= left
    return total


@compiled
def put(board: Board, p: int, n: int) -> None:
    """Take pod p from where it is and put it on node n, -1 for none, whether it fits or not."""
    old = board.host[p]
    if old >= 0:
        for r in range(board.free.shape[1]):
            board.free[old, r] += board.request[p, r]
        board.room[old] += 1
    if n >= 0:
        for r in range(board.free.shape[1]):
            board.free[n, r] -= board.request[p, r]
        board.room[n] -= 1
    board.host[p] = n


@inlined
def next_target(board: Board) -> int:
    """The pending pod of the next round: mostly an urgent, small one that has not failed often; -1 if there is none."""
    best, highest = -1, 0.0
    is_wild = draw(board) < WILD_SHARE
    for p in range(len(board.host)):
        if board.host[p] >= 0 or board.movable[p] == 0:
            continue
        value = draw(board)
        if not is_wild:
            value = 10.0 * board.tier[p] - board.size[p] * (0.5 + value) - 0.15 * board.failures[p] * draw(board)
        if best < 0 or value > highest:
            best, highest = p, value
    board.looks[0] += len(board.host)
    return best


@compiled
def play_round(board: Board, p: int) -> bool:
    """Try to place pod p; if it cannot be, all is as before."""
    count = len(board.free)
    wanted = FEWEST_NODES + FEWEST_NODES * draw(board) + NODES_A_FAILURE * board.failures[p]
    k = min(count, int(wanted))
    choose_nodes(board, p, k)
    q = gather(board, k)
    victim = -1
    if spare(board, k, p, -1) < 0.0 or draw(board) < EXCHANGE_SHARE:
        victim = choose_victim(board, p, k, q)
        if victim < 0:
            return False
    from_node = -1
    if victim >= 0:
        from_node = board.host[victim]
        put(board, victim, -1)
        q = without(board, victim, q)
    first = least_overloaded(board, p, k)
    if first < 0:
        if victim >= 0:
            put(board, victim, from_node)
        return False
    put(board, p, first)
    board.pool[q], board.before[q] = p, -1
    if relieve(board, k, q + 1):
        board.placed[board.tier[p]] += 1
        if victim >= 0:
            board.placed[board.tier[victim]] -= 1
            board.failures[victim] = 0.0
        return True
    for i in range(q + 1):
        put(board, board.pool[i], board.before[i])
    if victim >= 0:
        put(board, victim, from_node)
    return False


@inlined
def choose_nodes(board: Board, p: int, k: int) -> None:
    """Write k nodes into `nodes`: those that have much of what pod p asks for, with noise."""
    count = len(board.free)
    for n in range(count):
        value = 0.0
        for r in range(board.free.shape[1]):
            value += min(1.0, board.free[n, r] / max(1.0, float(board.request[p, r])))
        board.key[n] = value * (1.0 - NODE_NOISE + NODE_NOISE * draw(board))
        if not may(board, p, n):
            board.key[n] *= 0.5
    for i in range(k):
        best = 0
        for n in range(1, count):
            if board.key[n] > board.key[best]:
                best = n
        board.nodes[i] = best
        board.key[best] = -1.0
    board.looks[0] += count


@inlined
def gather(board: Board, k: int) -> int:
    """Write the pods of the round's nodes that may move into `pool`, and where they are; returns how many."""
    for n in range(len(board.key)):
        board.key[n] = 0.0
    for i in range(k):
        board.key[board.nodes[i]] = 1.0
    q = 0
    for a in range(len(board.host)):
        if board.movable[a] == 1 and board.host[a] >= 0 and board.key[board.host[a]] == 1.0:
            board.pool[q], board.before[q] = a, board.host[a]
            q += 1
    return q


@inlined
def without(board: Board, p: int, q: int) -> int:
    """Take pod p out of the first q of `pool`; returns how many are left."""
    kept = 0
    for i in range(q):
        if board.pool[i] != p:
            board.pool[kept], board.before[kept] = board.pool[i], board.before[i]
            kept += 1
    return kept


@inlined
def spare(board: Board, k: int, more: int, less: int) -> float:
    """What the round's nodes have left in all of the scarcest resource, with pod `more` and without pod `less`."""
    least = 1e18
    for r in range(board.free.shape[1]):
        total = -board.request[more, r]
        if less >= 0:
            total += board.request[less, r]
        for i in range(k):
            total += board.free[board.nodes[i], r]
        least = min(least, total * board.scale[r])
    return least


@inlined
def choose_victim(board: Board, p: int, k: int, q: int) -> int:
    """A pod of the pool to take away for pod p: less urgent, else as urgent and larger; -1 if none will do."""
    best, highest = -1, 0.0
    for i in range(q):
        a = board.pool[i]
        is_lower = board.tier[a] < board.tier[p]
        if not is_lower and (board.tier[a] > board.tier[p] or board.size[a] <= board.size[p] + _EXACT):
            continue
        if spare(board, k, p, a) < 0.0:
            continue
        value = board.size[a] * draw(board)
        value = -10.0 * board.tier[a] + (-value if is_lower else value - 5.0)
        if best < 0 or value > highest:
            best, highest = a, value
    board.looks[0] += q
    return best


@inlined
def least_overloaded(board: Board, p: int, k: int) -> int:
    """The node of the round where pod p fits best; -1 if it may run on none."""
    best, least = -1, 0.0
    for i in range(k):
        n = board.nodes[i]
        if may(board, p, n):
            value = overload(board, n, p, -1)
            if best < 0 or value < least:
                best, least = n, value
    return best


@compiled
def relieve(board: Board, k: int, q: int) -> bool:
    """Move and swap the first q pods of the pool among the round's nodes until no node is overloaded."""
    total = 0.0
    for i in range(k):
        total += overload(board, board.nodes[i], -1, -1)
    lowest = total
    for i in range(q):
        board.tabu[board.pool[i]] = _NEVER
    looks, change = 0, 0
    budget = LOOKS_A_POD * (q + 4)
    while total > _EXACT and looks < budget:
        change += 1
        n, seen = -1, 0
        for i in range(k):
            if overload(board, board.nodes[i], -1, -1) > _EXACT:
                seen += 1
                if draw(board) * seen < 1.0:
                    n = board.nodes[i]
        if n < 0:
            break
        here = overload(board, n, -1, -1)
        mover, partner, target, ties, best = -1, -1, -1, 0, 0.0
        for i in range(q):
            a = board.pool[i]
            if board.host[a] != n:
                continue
            for j in range(k + q):
                b = board.pool[j - k] if j >= k else -1
                m = board.host[b] if j >= k else board.nodes[j]
                if m == n or not may(board, a, m) or (b >= 0 and not may(board, b, n)):
                    continue
                looks += 1
                gain = overload(board, n, b, a) + overload(board, m, a, b) - here - overload(board, m, -1, -1)
                is_tabu = board.tabu[a] > change or (b >= 0 and board.tabu[b] > change)
                if is_tabu and total + gain > lowest - _EXACT:
                    continue
                if mover < 0 or gain < best - _EXACT:
                    mover, partner, target, ties, best = a, b, m, 1, gain
                elif gain < best + _EXACT:
                    ties += 1
                    if draw(board) * ties < 1.0:
                        mover, partner, target = a, b, m
        if mover < 0:
            looks += q
            continue
        put(board, mover, target)
        board.tabu[mover] = change + TENURE + int(draw(board) * MORE_TENURE)
        if partner >= 0:
            put(board, partner, n)
            board.tabu[partner] = change + TENURE + int(draw(board) * MORE_TENURE)
        total += best
        lowest = min(lowest, total)
    board.looks[0] += looks
    return total <= _EXACT
