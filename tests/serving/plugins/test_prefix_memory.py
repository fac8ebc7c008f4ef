"""What replicas are believed to know."""

from __future__ import annotations

from dispatchgym.serving.plugins.prefix_memory import CHUNK, PrefixMemory


def test_prefixes_are_known_in_whole_chunks():
    memory = PrefixMemory()
    text = "".join(chr(97 + i % 26) for i in range(3 * CHUNK + 5))
    memory.sent("a", text)
    memory.sent("b", text[: 2 * CHUNK])
    assert memory.matched(("a", "b", "c"), text).tolist() == [3 * CHUNK, 2 * CHUNK, 0]
    assert memory.held(("a", "b", "c")).tolist() == [3 * CHUNK, 2 * CHUNK, 0]
    changed = text[:CHUNK] + "!" + text[CHUNK + 1 :]
    assert memory.matched(("a", "b"), changed).tolist() == [CHUNK, CHUNK]
    assert memory.matched(("a",), "!" + text[1:]).tolist() == [0]
    memory.keep(["b"])
    assert memory.matched(("a", "b"), text).tolist() == [0, 2 * CHUNK]


def test_the_tail_that_was_not_used_is_forgotten_first():
    memory = PrefixMemory(most_chunks=4)
    old, new = "o" * (3 * CHUNK), "n" * (2 * CHUNK)
    memory.sent("a", old)
    memory.sent("a", new)
    assert memory.matched(("a",), old).tolist() == [2 * CHUNK]
    assert memory.matched(("a",), new).tolist() == [2 * CHUNK]
