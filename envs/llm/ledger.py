"""The KV ledger: who holds which blocks, what can be found in them, and what may be overwritten.

A block with no holder keeps its content until it is taken: free blocks form a ring, those that cannot be found first,
then the longest unused. A block is found by its key, which names its text and all before it; requests that find one
share it. Several blocks may have one key, where requests computed the same text side by side: the first is found. A
request gives its blocks back last block first, so that the ends of texts are overwritten before their beginnings.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.state import NONE, State, int64, uint64

_M1: Any = np.uint64(0xBF58476D1CE4E5B9)
_M2: Any = np.uint64(0x94D049BB133111EB)
_STEP: Any = np.uint64(0x9E3779B97F4A7C15)


@inlined
def mix(a: int, b: int) -> int:
    """A well-spread number from two (splitmix64)."""
    x = uint64(a) * _STEP + uint64(b) + _STEP
    x = (x ^ (x >> uint64(30))) * _M1
    x = (x ^ (x >> uint64(27))) * _M2
    return x ^ (x >> uint64(31))


@inlined
def blocks_for(s: State, tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return (int64(tokens) + s.eng[0].block_tokens - 1) // s.eng[0].block_tokens


@compiled
def key_of(s: State, r: int, j: int) -> int:
    """Key of block j of request r: by its text where hashes name it, else the request's own."""
    e, q = s.eng[0], s.req[r]
    if (j + 1) * e.block_tokens <= q.hashed:
        text = s.hashes[q.hash_at + j // e.hash_ratio]
        key = int64(mix(uint64(text), uint64(j % e.hash_ratio + 1)))
    else:
        key = int64(mix(uint64(q.serial) ^ uint64(0xD1B54A32D192ED03), uint64(j)))
    return key if key != 0 else int64(1)


@compiled
def find(s: State, key: int) -> int:
    """The block with this key, the first that got it; -1 if none."""
    mask = len(s.map_key) - 1
    at = key & mask
    while s.map_key[at] != 0:
        if s.map_key[at] == key:
            return int64(s.map_block[at])
        at = (at + 1) & mask
    return int64(-1)


@compiled
def enter_key(s: State, key: int, b: int) -> None:
    """Block b can be found by this key."""
    mask = len(s.map_key) - 1
    at = key & mask
    while s.map_key[at] != 0:
        at = (at + 1) & mask
    s.map_key[at] = key
    s.map_block[at] = b
    s.block[b].key = key


@compiled
def forget(s: State, b: int) -> None:
    """Block b can no longer be found."""
    key = s.block[b].key
    if key == 0:
        return
    s.block[b].key = 0
    mask = len(s.map_key) - 1
    at = key & mask
    while s.map_key[at] != key or s.map_block[at] != b:
        at = (at + 1) & mask
    gap = at
    while True:  # close the gap: move back what probing would no longer reach, in order
        at = (at + 1) & mask
        if s.map_key[at] == 0:
            break
        home = s.map_key[at] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):
            s.map_key[gap], s.map_block[gap] = s.map_key[at], s.map_block[at]
            gap = at
    s.map_key[gap] = 0


@inlined
def _unlink(s: State, b: int) -> None:
    block = s.block[b]
    s.block[block.before].after = block.after
    s.block[block.after].before = block.before
    s.eng[0].free -= 1


@inlined
def _link(s: State, b: int) -> None:
    knot = s.eng[0].kv_blocks
    before = int64(s.block[knot].before if s.block[b].key != 0 else knot)
    after = int64(s.block[before].after)
    s.block[before].after = b
    s.block[b].before = before
    s.block[b].after = after
    s.block[after].before = b
    s.eng[0].free += 1


@compiled
def grow(s: State, r: int, total: int) -> None:
    """Take free blocks until request r holds `total`; the caller has seen that there are enough."""
    q = s.req[r]
    knot = s.eng[0].kv_blocks
    while q.blocks < total:
        b = s.block[knot].after
        _unlink(s, b)
        forget(s, b)
        s.block[b].ref = 1
        s.table[q.slot, q.blocks] = b
        q.blocks += 1


@inlined
def _let_go(s: State, b: int) -> None:
    s.block[b].ref -= 1
    if s.block[b].ref == 0:
        _link(s, b)


@compiled
def shrink(s: State, r: int, total: int) -> None:
    """Give back blocks, the last first, until request r holds `total`."""
    q = s.req[r]
    while q.blocks > total:
        q.blocks -= 1
        _let_go(s, int64(s.table[q.slot, q.blocks]))


@compiled
def cached_blocks(s: State, r: int) -> tuple[int, int]:
    """Leading blocks of waiting request r that can be found now, and how many of these nobody holds.

    At least one token is always left to compute: its output is what comes next.
    """
    e, q = s.eng[0], s.req[r]
    if e.caching == 0:
        return int64(0), int64(0)
    most = (int64(q.prompt) + q.generated - 1) // e.block_tokens
    most = min(most, max(int64(q.hashed), int64(q.peak)) // e.block_tokens)
    found, idle = int64(0), int64(0)
    while found < most:
        b = find(s, key_of(s, r, found))
        if b == NONE:
            break
        if s.block[b].ref == 0:
            idle += 1
        found += 1
    return found, idle


@compiled
def share(s: State, r: int, count: int) -> None:
    """Request r, which holds nothing, holds the first `count` blocks of its text as well."""
    q = s.req[r]
    for j in range(count):
        b = find(s, key_of(s, r, j))
        if s.block[b].ref == 0:
            _unlink(s, b)
        s.block[b].ref += 1
        s.table[q.slot, j] = b
    q.blocks = count


@compiled
def publish(s: State, r: int, before: int, after: int) -> int:
    """Make blocks of request r findable that fill up as its tokens grow from `before` to `after`; how many were new."""
    e, q = s.eng[0], s.req[r]
    new = int64(0)
    if e.caching == 0:
        return new
    for j in range(int64(before) // e.block_tokens, int64(after) // e.block_tokens):
        b = int64(s.table[q.slot, j])
        if s.block[b].key == 0:
            enter_key(s, key_of(s, r, j), b)
            new += 1
    return new


@compiled
def name_text(s: State, r: int, hashed: int) -> None:
    """The hashes of request r, which are there, name its text up to `hashed` tokens from now on.

    Blocks that were found by the request's own keys, which nobody else has, are found by their text.
    """
    e, q = s.eng[0], s.req[r]
    for j in range(int64(q.hashed) // e.block_tokens, int64(hashed) // e.block_tokens):
        own = key_of(s, r, j)
        q.hashed = (j + 1) * e.block_tokens
        key = key_of(s, r, j)
        b = find(s, own)
        while b != NONE:  # more than one, if it has computed the same text twice
            forget(s, b)
            enter_key(s, key, b)
            b = find(s, own)


@compiled
def unpublish(s: State, r: int, before: int) -> None:
    """Blocks of request r that have become findable from token `before` on are not any more."""
    q = s.req[r]
    for j in range(int64(before) // s.eng[0].block_tokens, q.blocks):
        forget(s, int64(s.table[q.slot, j]))


@compiled
def is_relied_on(s: State, r: int, before: int) -> bool:
    """Others hold blocks of request r that have become findable from token `before` on."""
    q = s.req[r]
    most = 0
    for j in range(int64(before) // s.eng[0].block_tokens, q.blocks):
        most = max(most, s.block[s.table[q.slot, j]].ref)
    return most > 1


@compiled
def pin(s: State, r: int, tokens: int, until_s: float) -> int:
    """Hold the blocks found for the first `tokens` of r's text until a time, or until `unpin`; returns how many."""
    q, e = s.req[r], s.eng[0]
    unpin(s, r)
    if e.caching == 0:
        return int64(0)
    count = int64(0)
    while (count + 1) * e.block_tokens <= tokens:
        b = find(s, key_of(s, r, count))
        if b == NONE:
            break
        if s.block[b].ref == 0:
            _unlink(s, b)
        s.block[b].ref += 1
        count += 1
    q.pinned = count
    q.pinned_until_s = until_s
    if count > 0:
        e.pins += 1
    return count


@compiled
def unpin(s: State, r: int) -> None:
    """End request r's pin, if it has one."""
    q = s.req[r]
    if q.pinned == 0:
        return
    for j in range(q.pinned - 1, -1, -1):
        _let_go(s, find(s, key_of(s, r, j)))
    q.pinned = 0
    s.eng[0].pins -= 1


@compiled
def expire_pins(s: State) -> None:
    """End the pins whose time has come."""
    e = s.eng[0]
    if e.pins == 0:
        return
    for r in range(e.next):
        if s.req[r].pinned > 0 and s.req[r].pinned_until_s <= e.now:
            unpin(s, r)
