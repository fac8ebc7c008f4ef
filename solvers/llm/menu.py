"""A menu of rules: the one that would have served the last window best serves the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.metrics import slo_met
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, Policy, RequestTable
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.batch_llm import BatchLlm
from dispatchgym.solvers.llm.eb_plus import EbPlus
from dispatchgym.solvers.llm.flow_prefill import FlowPrefill
from dispatchgym.solvers.llm.identity import Who, who
from dispatchgym.solvers.llm.laps import Laps
from dispatchgym.solvers.llm.least_slack import LeastSlack
from dispatchgym.solvers.llm.past_future import PastFuture
from dispatchgym.solvers.llm.sglang import SGLang
from dispatchgym.solvers.llm.stationary import Stationary


class FirstCome:
    """What the engine does by itself, vLLM's rules: an empty plan."""

    name = "fcfs"
    oracle = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        return Plan()


DISHES: Mapping[str, Callable[[], Policy]] = {
    "vllm": FirstCome,
    "flow-prefill": FlowPrefill,
    "laps": Laps,
    "sglang": SGLang,
    "past-future": partial(PastFuture, window=40),
    "least-slack": LeastSlack,
    "eb-plus": EbPlus,
    "batch-llm": partial(BatchLlm, lengths="max"),
    "i-dlm-stationary": Stationary,
}
"""What there is to choose from; none is told output lengths."""

FIRST = 8
"""Arrivals before the first choice."""

Facts = dict[str, float]


class Menu:
    """Runs one of several schedulers; after every `window` arrivals all are simulated on these, and the best goes on.

    The simulation has the engine's limits and step times. Output lengths are what was seen: of those that ended the
    tokens put out when last seen, of the others at least as many as the mean of those that ended. Best is who keeps the
    SLOs of the most requests; of equals, who gives the least mean time to the end, and for a batch that is all there,
    the least time to the last. The first choices are made of fewer, after 8, 16, 32 arrivals and so on; until then
    vLLM's rules.

    Source: ours, as the strongest choice without learning.

    Args:
        window: arrivals between two choices.
        switch: share by which another must be better than the one that runs.
    """

    name = "menu"
    oracle = False
    texts = True

    def __init__(self, window: int = 100, switch: float = 0.02) -> None:
        self.window = window
        self.switch = switch

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self._dishes = {name: make() for name, make in DISHES.items()}
        for each in self._dishes.values():
            each.reset(spec, seed)
        self.chosen = "vllm"
        self.choices: deque[str] = deque(maxlen=100)
        self._seen: dict[Who, Facts] = {}  # by arrival: the last ones, and before them who is still here
        self._hashes: dict[Who, np.ndarray] = {}
        self._arrivals, self._next = 0, FIRST

    def decide(self, view: EngineView) -> Plan:
        self._watch(view)
        if self._arrivals >= self._next:
            self._next = self._arrivals + min(self.window, self._arrivals)
            self._choose(view)
        return self._dishes[self.chosen].decide(view)

    def _watch(self, view: EngineView) -> None:
        """Remember who came, and how many tokens each has put out; forget who left before the last arrivals came."""
        present: set[Who] = set()
        for table in (view.running, view.waiting):
            for k, (each, out) in enumerate(zip(who(table), table.generated.tolist(), strict=True)):
                present.add(each)
                facts = self._seen.get(each)
                if facts is None:
                    self._arrivals += 1
                    facts = self._seen[each] = _facts(table, k)
                    if view.texts is not None and len(view.texts.hashes[each[0]]):
                        self._hashes[each] = view.texts.hashes[each[0]]
                facts["out"] = max(out, 1)
        seen, last = list(self._seen), 2 * self.window
        for each in seen[-last:]:
            self._seen[each]["here"] = float(each in present)
        for each in seen[:-last]:
            if each not in present:
                del self._seen[each]
                self._hashes.pop(each, None)

    def _choose(self, view: EngineView) -> None:
        workload = self._window(view)
        config = replace(self._spec.config, kv_blocks=self._spec.kv_blocks)
        best = self._worth(self.chosen, workload, config)
        for name in DISHES:
            if name != self.chosen:
                worth = self._worth(name, workload, config)
                if worth[0] > best[0] + self.switch or (worth[0] >= best[0] and worth[1] < best[1] * (1 - self.switch)):
                    best, self.chosen = worth, name
        self.choices.append(self.chosen)

    def _worth(self, name: str, workload: Workload, config: EngineConfig) -> tuple[float, float]:
        """Share in time, and seconds: the more of the first, then the fewer of the second, the better."""
        record: Record = simulate(workload, DISHES[name](), config, self._spec.profile, self._seed, steps=False)
        first, rest = slo_met(record)
        took = record.requests.finish_s - workload.arrival_s
        batch = workload.arrival_s[-1] == workload.arrival_s[0]
        return float((first & rest).mean()), float(np.nanmax(took) if batch else np.nanmean(took))

    def _window(self, view: EngineView) -> Workload:
        """The last arrivals as a workload."""
        rows = sorted(list(self._seen)[-2 * self.window :], key=lambda each: each[1])[-self.window :]
        # Those that ended early say too little of how long the others go on.
        mean = float(view.history.mean()) if len(view.history) else 0.0
        column = {name: np.array([self._seen[each][name] for each in rows]) for name in self._seen[rows[0]]}
        most = column["max_new_tokens"]
        guess = np.where(column["here"] > 0, np.maximum(column["out"] + 1, mean if mean else most / 4), column["out"])
        output = np.clip(np.rint(guess), 1, most)
        fits = self._spec.kv_blocks * self._spec.config.block_tokens - column["prompt_tokens"] - 1
        hashes = [self._hashes.get(each, np.zeros(0, np.int64)) for each in rows]
        size = view.texts.block_tokens if view.texts is not None else 16
        return Workload(
            arrival_s=column["arrival_s"] - column["arrival_s"][0],
            prompt_tokens=column["prompt_tokens"].astype(np.int64),
            output_tokens=np.maximum(np.minimum(output, fits), 1).astype(np.int64),
            max_new_tokens=most.astype(np.int64),
            ttft_slo_s=column["ttft_slo_s"],
            tpot_slo_s=column["tpot_slo_s"],
            slo_kind="mean" if self._spec.slo_kind == "mean" else "max",
            hash_ptr=np.concatenate([[0], np.cumsum([len(each) for each in hashes])]),
            hashes=np.concatenate(hashes),
            hash_block=size,
            name="window",
        )


def _facts(table: RequestTable, k: int) -> Facts:
    names = ("arrival_s", "prompt_tokens", "max_new_tokens", "ttft_slo_s", "tpot_slo_s")
    return {name: float(getattr(table, name)[k]) for name in names} | {"out": 1.0, "here": 1.0}
