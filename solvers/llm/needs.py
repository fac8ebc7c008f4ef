"""What schedulers ask of an engine beyond order, admission, pieces of prompts and preemption by recomputing."""

from __future__ import annotations

from collections.abc import Mapping

NEEDS: Mapping[str, frozenset[str]] = {
    "oracle": frozenset({"lengths", "segments"}),
    "menu": frozenset({"segments", "wait", "pins", "drafts"}),
    "mc-sf": frozenset({"lengths"}),
    "srtf": frozenset({"lengths"}),
    "trail": frozenset({"lengths"}),
    "ltr": frozenset({"lengths"}),
    "batch-llm": frozenset({"lengths", "pins"}),
    "mlfq": frozenset({"swap"}),
    "andes": frozenset({"swap"}),
    "flow-prefill": frozenset({"segments"}),
    "laps": frozenset({"wait"}),
    "i-dlm-stationary": frozenset({"drafts"}),
    "exspec": frozenset({"drafts"}),
    "eqspec": frozenset({"drafts"}),
}
"""Scheduler -> any of: "lengths" true output lengths; "swap" KV moved to the host; "segments" forward passes
interrupted; "wait" steps put off; "pins" prefixes held in the cache; "drafts" several tokens of a decoding request
verified at once."""
