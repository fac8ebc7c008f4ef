"""Checks evidence from its files alone: plain Python, nothing of the engine.

python -m dispatchgym.agents.evaluation.llm.evidence_check DIR
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPS = 1e-6

Line = dict[str, Any]


def problems_of(folder: Path) -> Iterator[str]:
    """What is wrong with the evidence in a folder, a sentence each; nothing if it holds."""
    runs = {}
    for line in _lines(folder / "requests.jsonl"):
        line["ran"] = [0] * len(line["arrival_s"])
        line["ends"], line["steps"] = 0.0, 0
        runs[_key(line)] = line
    for step in _lines(folder / "steps.jsonl"):
        run = runs.get(_key(step))
        if run is None:
            yield f"{_key(step)}: steps of a run that has no requests"
            continue
        yield from (f"{_key(step)}, step {step['step']}: {what}" for what in _step(step, run))
    for key, run in runs.items():
        yield from (f"{key}: {what}" for what in _run(run))


def _step(step: Line, run: Line) -> Iterator[str]:
    tokens = 0
    for request, count in step["grants"]:
        tokens += count
        run["ran"][request] += count
        if run["arrival_s"][request] > step["start_s"] + EPS:
            yield f"request {request} runs before it arrives"
        if (run["finish_s"][request] or 0.0) < step["start_s"] - EPS:
            yield f"request {request} runs after its end"
    if len({request for request, _ in step["grants"]}) < len(step["grants"]):
        yield "a request twice"
    if tokens > run["token_budget"]:
        yield f"{tokens} tokens, more than {run['token_budget']}"
    if len(step["grants"]) > run["max_seqs"]:
        yield f"{len(step['grants'])} requests, more than {run['max_seqs']}"
    if step["kv_blocks"] > run["kv_blocks"]:
        yield f"{step['kv_blocks']} blocks, more than {run['kv_blocks']}"
    if step["step"] != run["steps"] or step["start_s"] < run["ends"] - EPS or step["duration_s"] <= 0:
        yield "out of order"
    run["ends"], run["steps"] = step["start_s"] + step["duration_s"], run["steps"] + 1


def _run(run: Line) -> Iterator[str]:
    in_time, tokens, latency = 0, 0, 0.0
    for i, done in enumerate(run["finished"]):
        if not done:
            continue
        need = run["prompt_tokens"][i] + run["output_tokens"][i] - 1
        if run["ran"][i] + run["cached_tokens"][i] < need:
            yield f"request {i} finished: {run['ran'][i]} tokens run, {run['cached_tokens'][i]} found, {need} needed"
        ttft = run["first_token_s"][i] - run["arrival_s"][i]
        gaps = run["output_tokens"][i] - 1
        mean = (run["finish_s"][i] - run["first_token_s"][i]) / gaps if gaps else 0.0
        gap = (mean if run["slo_kind"] == "mean" else run["max_gap_s"][i]) if gaps else 0.0
        if _kept(ttft, run["ttft_slo_s"][i]) and _kept(gap, run["tpot_slo_s"][i]):
            in_time += 1
            tokens += run["output_tokens"][i]
        latency += run["finish_s"][i] - run["arrival_s"][i]
    took = run["end_s"] - run["arrival_s"][0]
    expected = {"goodput_rps": in_time / took, "goodput_tps": tokens / took}.get(run["metric"])
    if expected is not None and abs(expected - run["value"]) > 1e-5 * max(1.0, abs(expected)):
        yield f"{run['metric']} is {expected} by these requests, not {run['value']}"


def _kept(value: float, bound: float | None) -> bool:
    return bound is None or value <= bound * (1 + EPS)


def _key(line: Line) -> str:
    return f"{line['group']} {line['instance']} {line['policy']} seed={line['seed']}"


def _lines(path: Path) -> Iterator[Line]:
    with path.open() as file:
        for text in file:
            yield json.loads(text)


def main(argv: list[str]) -> int:
    """Print what is wrong; 1 if anything is."""
    found = list(problems_of(Path(argv[0])))
    print("\n".join(found[:20]) or "all of it holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
