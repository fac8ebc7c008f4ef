"""What the evaluations of a run say: the policy beside the rules, over all sizes and on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

GREEDY = "validation/greedy"
"""Interquartile mean of the greedy policy's gaps: what the best weights are chosen by."""


class Named(NamedTuple):
    """A rule and its gap, per cent above the lower bound."""

    rule: str
    gap: float


class Evaluations:
    """Rows of metrics.jsonl that judge the policy, in order; others are passed over.

    A row that judges the rules as well begins a validation set: figures on another one do not compare.

    Args:
        rules: names of the rules, best first to break ties.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        self.names = tuple(rules)
        self.rules: dict[str, float] = {}
        """`validation/RULE` and `validation/RULE/SIZE` of the present set."""
        self.rows: list[Mapping[str, Any]] = []
        """On the present set."""
        self.best: Mapping[str, Any] | None = None

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take note of a row; says whether it judges the policy."""
        if GREEDY not in row:
            return False
        if any(f"validation/{rule}" in row for rule in self.names):
            starts = tuple(f"validation/{rule}" for rule in self.names)
            self.rules = {
                key: value for key, value in row.items() if key in starts or key.startswith(_with_slash(starts))
            }
            self.rows, self.best = [], None
        self.rows.append(row)
        if self.best is None or row[GREEDY] < self.best[GREEDY]:
            self.best = row
        return True

    @property
    def sizes(self) -> list[str]:
        """Of the present set, the smallest shops first."""
        begin = f"{GREEDY}/"
        found = [key.removeprefix(begin) for key in (self.rows[-1] if self.rows else ()) if key.startswith(begin)]
        return sorted(found, key=lambda size: (num_operations(size), size))

    def best_rule(self, size: str | None = None) -> Named | None:
        """The rule with the smallest gap, over all sizes or on one; None without rules."""
        end = "" if size is None else f"/{size}"
        judged = [
            Named(rule, self.rules[key]) for rule in self.names if (key := f"validation/{rule}{end}") in self.rules
        ]
        return min(judged, key=lambda named: named.gap, default=None)

    def ahead(self, row: Mapping[str, Any]) -> dict[str, float]:
        """`ahead/all` and `ahead/SIZE`: points by which the policy's gap is below the best rule's."""
        found = {}
        for size in (None, *self.sizes):
            end = "" if size is None else f"/{size}"
            rule = self.best_rule(size)
            if rule is not None and GREEDY + end in row:
                found[f"ahead/{size or 'all'}"] = rule.gap - row[GREEDY + end]
        return found


def num_operations(size: str) -> int:
    """Operations of a shop called "JOBSxMACHINES", pods times nodes of a cluster; 0 of a group without a size."""
    first, _, second = size.partition("x")
    return int(first) * int(second) if first.isdigit() and second.isdigit() else 0


def _with_slash(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{key}/" for key in keys)
