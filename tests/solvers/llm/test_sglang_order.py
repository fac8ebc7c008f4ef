"""SGLang's orders of the queue, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.solvers.llm.sglang import SGLang
from dispatchgym.solvers.llm.sglang_order import Order, ordered
from tests.solvers.llm.helpers import view

RNG = np.random.default_rng(0)


def test_longest_output_first_and_random() -> None:
    seen = view([], [{"max_new_tokens": n} for n in (5, 90, 20)])
    assert ordered(seen, "lof", RNG).tolist() == [1, 2, 0]
    drawn = {tuple(ordered(seen, "random", RNG).tolist()) for _ in range(100)}
    assert len(drawn) == 6


def test_depth_first_takes_the_branch_with_the_most_waiting() -> None:
    """Cached: 1 for request 100, 1-2 for 101 and 103, 7 for 102. Below 1 wait three, deepest first; below 7 one."""
    cached = {100: [1], 101: [1, 2], 102: [7], 103: [1, 2]}
    rows = [{"prompt_tokens": 100, "cached_tokens": 16 * len(blocks)} for blocks in cached.values()]
    hashes = {r: [*blocks, 1000 + r] for r, blocks in cached.items()}
    assert ordered(view([], rows, hashes=hashes), "dfs-weight", RNG).tolist() == [1, 3, 0, 2]


def test_who_begins_like_one_before_it_waits_for_the_cache() -> None:
    """100 and 102 share 32 tokens and have none cached: 102 goes back. 101 shares 16 alone; 103 has 48 cached."""
    hashes = {100: [1, 2, 3], 101: [1, 9, 9], 102: [1, 2, 8], 103: [5, 6, 7]}
    rows = [{"prompt_tokens": 100, "cached_tokens": tokens} for tokens in (0, 0, 0, 48)]
    assert ordered(view([], rows, hashes=hashes), "lpm", RNG).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("order", ["fcfs", "lpm", "dfs-weight", "lof", "random", "hrrn", "shortest"])
def test_everybody_is_in_the_order_once(order: Order) -> None:
    rows = [{"prompt_tokens": 50 + k, "cached_tokens": 16 * (k % 3)} for k in range(20)]
    hashes = {100 + k: [k % 2, 10 + k % 4, 100 + k] for k in range(20)}
    assert sorted(ordered(view([], rows, hashes=hashes), order, RNG).tolist()) == list(range(20))
    assert SGLang(order).texts == (order in ("lpm", "dfs-weight"))


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UsageError, match="'lmp' is not one of 'fcfs', 'lpm', 'dfs-weight'"):
        SGLang("lmp")  # type: ignore[arg-type]
