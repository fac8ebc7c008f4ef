"""Fits a latency profile to measured steps: least absolute relative error, with the profile's own formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp  # type: ignore[import-untyped]

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.profile import Captured, Decoding, Profile

F64 = npt.NDArray[np.float64]

COLUMNS = ("base_s", "token_s", "row_s", "pair_s", "context_s", "chunk_s", "mixed_s")
"""Coefficients that are fitted; `weights_s` comes with `token_s`, from the batch size up to which a step is as long."""

DECODING_COLUMNS = ("base_s", "token_s", "row_s", "context_s", "spread_s")
"""Those of steps that decode one token a request, where such steps are captured."""

KNEES = 24
"""Batch sizes that are tried for that, and once more between the neighbours of the best."""

LEADS, CLOSER = 5, (1, 4, 16)
"""Values of `lead_s` that are tried about the best so far, and parts of the shortest step up to which they go."""

HOST_SHARE, ROUNDS = 0.3, 3
"""Of steps that are not captured, the share that runs the fewest tokens is taken to wait for the host; the others for
the device, which is corrected so many times by what the fit then says."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the time of a step without swapping depends on; see Profile.

    Attributes:
        decodes, prefills: requests that decode, and that read their prompt.
        decode_tokens, prefill_tokens: that they run.
        pairs: (query, key) pairs inside prompt pieces. read: tokens whose KV attention reads.
        seconds: measured.
        plain_before_s: of the step before, if it was captured and this one did not wait for it; else 0.
    """

    decodes: int
    prefills: int
    decode_tokens: int
    prefill_tokens: int
    pairs: int
    read: int
    seconds: float
    plain_before_s: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Everyone decodes one token."""
        return self.prefills == 0 and self.decode_tokens == self.decodes

    @property
    def is_mixed(self) -> bool:
        """Some decode, and some read their prompts."""
        return self.prefills > 0 and self.decodes > 0

    @property
    def tokens(self) -> int:
        """That the step has, of prompts and of decoding."""
        return self.decode_tokens + self.prefill_tokens

    @property
    def pieces(self) -> int:
        """Pieces of prompts, and requests that verify drafts."""
        return self.prefills + (self.decodes if self.decode_tokens > self.decodes else 0)


def step_cost(
    start: npt.NDArray[Any], tokens: npt.NDArray[Any], decode: npt.NDArray[Any], seconds: float
) -> StepCost:  # fmt: skip
    """Of a step's rows: tokens held before, tokens run, and whether each decodes."""
    start, tokens, decode = start.astype(np.int64), tokens.astype(np.int64), decode.astype(bool)
    first, n = start[~decode], tokens[~decode]
    return StepCost(
        decodes=int(decode.sum()), prefills=len(n), decode_tokens=int(tokens[decode].sum()),
        prefill_tokens=int(n.sum()),
        pairs=int((n * first + n * (n + 1) // 2).sum()), read=int((start + tokens)[decode].sum() + first.sum()),
        seconds=seconds,
    )  # fmt: skip


def positions(profile: Profile, steps: Sequence[StepCost]) -> F64:
    """Tokens that each step runs, those included that only fill up a captured graph; shape (steps,)."""
    pad = profile.padding(max((step.decodes for step in steps), default=0))
    return np.array(
        [
            step.decode_tokens * int(pad[step.decodes]) // step.decodes
            if step.is_plain or (step.prefills == 0 and profile.captured is None)
            else profile.of_pass(step.tokens)[1]
            for step in steps
        ],
        np.float64,
    )  # fmt: skip


def predict(profile: Profile, steps: Sequence[StepCost]) -> F64:
    """Seconds of each step by the profile, shape (steps,)."""
    run = positions(profile, steps)
    before = np.array([step.plain_before_s for step in steps])
    columns = _columns(steps, run)
    host = np.array([profile.host_s + profile.host_mixed_s * step.is_mixed for step in steps])
    seconds = np.maximum(_work(columns, profile) - np.minimum(profile.lead_s, before), host - before)
    if (captured := profile.captured) is not None:
        is_captured = np.array([step.tokens <= captured.sizes[-1] for step in steps])
        seconds = np.where(is_captured, _work(columns, captured) - np.minimum(captured.lead_s, before), seconds)
    d = profile.plain_decoding
    plain = _run(_decoding_columns(steps, run), [getattr(d, name) for name in DECODING_COLUMNS], d.weights_s)
    return np.where([step.is_plain for step in steps], plain, seconds)


def relative_errors(profile: Profile, steps: Sequence[StepCost]) -> F64:
    """|predicted / measured - 1| of each step."""
    return np.asarray(np.abs(predict(profile, steps) / np.array([step.seconds for step in steps]) - 1.0))


def fit(rough: Profile, steps: Sequence[StepCost], sizes: Sequence[int] = ()) -> Profile:
    """The profile with the coefficients that explain the steps best; none is below 0.

    `sizes` are those of captured passes, see `Captured`; too few steps of such, or of others, are fitted together.

    Raises:
        UsageError: there are too few steps.
    """
    if len(steps) < 2 * len(COLUMNS):
        raise UsageError(f"calibration: {len(steps)} measured steps are too few for {len(COLUMNS)} coefficients")
    rough = replace(rough, source="measured", host_s=0.0, host_mixed_s=0.0, lead_s=0.0, decoding=None, captured=None)
    if not rough.graph_sizes:
        return _fit_device(rough, steps)
    plain = [step for step in steps if step.is_plain]
    rest = [step for step in steps if not step.is_plain]
    if len(plain) < 2 * len(DECODING_COLUMNS):
        raise UsageError(f"calibration: {len(plain)} steps of decoding alone are too few")
    terms, weights_s = _fit(_decoding_columns(plain, positions(rough, plain)), plain, DECODING_COLUMNS, KNEES)
    rough = replace(rough, decoding=Decoding(weights_s=weights_s, **terms))
    captured = [step for step in rest if sizes and step.tokens <= sizes[-1]]
    launched = [step for step in rest if not sizes or step.tokens > sizes[-1]]
    if min(len(captured), len(launched)) < 2 * len(COLUMNS):
        return _fit_passes(rough, rest, (_fit_device, _fit_beside_host))
    profile = _fit_passes(rough, launched, (_fit_device, _fit_beside_host))
    return replace(profile, captured=_fit_captured(rough, captured, tuple(sizes)))


def _fit_captured(rough: Profile, steps: Sequence[StepCost], sizes: tuple[int, ...]) -> Captured:
    """Fit captured passes of these sizes: as if launched with as many tokens as they run."""
    filled = [next(size for size in sizes if size >= step.tokens) - step.tokens for step in steps]
    full = [
        replace(step, decode_tokens=step.decode_tokens + more)
        if step.prefills == 0
        else replace(step, prefill_tokens=step.prefill_tokens + more)
        for step, more in zip(steps, filled, strict=True)
    ]
    found = _fit_passes(replace(rough, graph_sizes=()), full, (_fit_device,))
    names = [each.name for each in fields(Captured) if each.name != "sizes"]
    return Captured(sizes, **{name: getattr(found, name) for name in names})


def _fit_passes(
    rough: Profile, steps: Sequence[StepCost], ways: Sequence[Callable[[Profile, Sequence[StepCost]], Profile]]
) -> Profile:  # fmt: skip
    """Fit steps that do more than decode, in the best of these ways, with the lead that suits them."""

    def better(best: Profile | None, tried: Sequence[Profile]) -> Profile:
        found = [way(each, steps) for each in tried for way in ways]
        return min([best, *found] if best else found, key=lambda each: relative_errors(each, steps).sum())

    best = better(None, [rough])
    most = min(step.seconds for step in steps) if any(step.plain_before_s for step in steps) else 0.0
    for part in CLOSER if most > 0 else ():
        tried = np.linspace(max(best.lead_s - most / part, 0.0), best.lead_s + most / part, LEADS).tolist()
        best = better(best, [replace(best, lead_s=lead_s) for lead_s in tried])
    return best


def _fit_device(rough: Profile, steps: Sequence[StepCost]) -> Profile:
    """Fit steps that all wait for the device, the lead being what it is."""
    if len(steps) < 2 * len(COLUMNS):
        raise UsageError(f"calibration: {len(steps)} steps with prompts are too few for {len(COLUMNS)} coefficients")
    rough = replace(rough, host_s=0.0, host_mixed_s=0.0)
    columns = _columns(steps, positions(rough, steps))
    terms, weights_s = _fit(columns, steps, COLUMNS, KNEES, _unsaved(rough, steps))
    return _with(rough, terms, weights_s)


def _unsaved(rough: Profile, steps: Sequence[StepCost]) -> F64:
    """What of the lead is left in each step's time on the device."""
    return np.asarray(rough.lead_s - np.minimum(rough.lead_s, [step.plain_before_s for step in steps]), np.float64)


def _with(rough: Profile, terms: dict[str, Any], weights_s: float) -> Profile:
    """With these coefficients; `base_s` is what they say beside the lead, and time does not stand still."""
    base_s = max(terms["base_s"] + rough.lead_s, 0.0 if weights_s > 0 else 1e-9)
    return replace(rough, weights_s=weights_s, **(terms | {"base_s": base_s}))


def summary(profile: Profile, steps: Sequence[StepCost]) -> dict[str, float]:
    """How well the profile foretells steps: mean, P90 and mean of the worst tenth of the relative errors."""
    errors = np.sort(relative_errors(profile, steps))
    worst = errors[-max(1, len(errors) // 10) :]
    return {
        "steps": float(len(errors)),
        "mape": float(errors.mean()),
        "p90": float(np.percentile(errors, 90)),
        "worst_decile": float(worst.mean()),
    }


def _columns(steps: Sequence[StepCost], run: F64) -> F64:
    """What each of COLUMNS is multiplied with, shape (steps, COLUMNS); the second is `run`, tokens run."""
    rows = [
        (1.0, tokens, step.decodes + step.prefills, step.pairs, step.read, step.pieces, step.is_mixed)
        for step, tokens in zip(steps, run.tolist(), strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, len(COLUMNS))


def _decoding_columns(steps: Sequence[StepCost], run: F64) -> F64:
    """What each of DECODING_COLUMNS is multiplied with; the second is `run`, rows run."""
    rows = [
        (1.0, tokens, step.decodes, step.read, math.sqrt(step.read))
        for step, tokens in zip(steps, run.tolist(), strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, len(DECODING_COLUMNS))


def _work(columns: F64, terms: Profile | Captured) -> F64:
    """Seconds that the device needs for steps that do more than decode."""
    return _run(columns, [getattr(terms, name) for name in COLUMNS], terms.weights_s)


def _run(columns: F64, terms: Sequence[float], weights_s: float) -> F64:
    """Seconds by coefficients, of which the second counts with at least `weights_s`."""
    c = np.array(terms)
    run = columns[:, 1] * c[1]
    return np.asarray(columns @ c - run + np.maximum(weights_s, run), np.float64)


def _fit_beside_host(rough: Profile, steps: Sequence[StepCost]) -> Profile:
    """Fit steps that are not captured: what the host needs to those of few tokens, the device's work to the others."""
    groups = [[step for step in steps if step.is_mixed == mixed] for mixed in (False, True)]
    alone_s, mixed_s = (
        float(np.median([step.seconds + step.plain_before_s for step in _smallest(group)] or [0.0])) for group in groups
    )
    found = replace(rough, host_s=alone_s, host_mixed_s=max(0.0, mixed_s - alone_s), weights_s=0.0)
    host = np.array([alone_s + found.host_mixed_s * step.is_mixed - step.plain_before_s for step in steps])
    columns, unsaved = _columns(steps, positions(found, steps)), _unsaved(found, steps)
    small = {id(step) for group in groups for step in _smallest(group)}
    busy = np.array([id(step) not in small for step in steps])
    for _ in range(ROUNDS):
        if busy.sum() < 2 * len(COLUMNS):
            break
        ran = [step for step, is_busy in zip(steps, busy, strict=True) if is_busy]
        terms, _ = _fit(columns[busy], ran, COLUMNS, 0, unsaved[busy])
        found = _with(found, terms, 0.0)
        busy = _run(columns, [terms[name] for name in COLUMNS], 0.0) + unsaved > host
    return found


def _smallest(steps: Sequence[StepCost]) -> list[StepCost]:
    """Those that run the fewest tokens: HOST_SHARE of them."""
    if not steps:
        return []
    tokens = np.array([step.tokens for step in steps])
    most = np.quantile(tokens, HOST_SHARE)
    return [step for step, n in zip(steps, tokens, strict=True) if n <= most]


def _fit(
    columns: F64, steps: Sequence[StepCost], names: Sequence[str], knees: int, beside_s: float | F64 = 0.0
) -> tuple[dict[str, Any], float]:  # fmt: skip
    """Coefficients by name, and the `weights_s` that goes with them; 0 if no `knees` are tried.

    `beside_s` of each step's time are not theirs to explain.
    """
    seconds = np.array([step.seconds for step in steps])
    theirs = 1.0 - beside_s / seconds
    run = columns[:, 1].copy()
    best, best_error, best_knee = np.zeros(len(names)), np.inf, 0.0
    low, high = 1.0, max(float(run.max()), 2.0)
    for _ in range(2 if knees else 1):
        for knee in (0.0, *np.geomspace(low, high, knees).tolist()):
            columns[:, 1] = np.maximum(run, knee)
            found, error = _least_absolute(columns / seconds[:, None], theirs)
            if error < best_error * (1 - 1e-9):
                best, best_error, best_knee = found, error, knee
        stride = (high / low) ** (1 / max(knees - 1, 1))
        low, high = max(best_knee / stride, 1.0), max(best_knee * stride, 2.0)
    terms = dict(zip(names, best.tolist(), strict=True))
    return terms, terms["token_s"] * best_knee


def _least_absolute(columns: F64, wanted: F64) -> tuple[F64, float]:
    """Coefficients >= 0 with the least sum of |columns @ c - wanted|, and that sum."""
    scale = columns.max(0)
    scale[scale == 0] = 1.0
    solver = pywraplp.Solver.CreateSolver("GLOP")
    c = [solver.NumVar(0.0, solver.infinity(), "") for _ in range(columns.shape[1])]
    over = [solver.NumVar(0.0, solver.infinity(), "") for _ in columns]
    under = [solver.NumVar(0.0, solver.infinity(), "") for _ in columns]
    for row, value, above, below in zip((columns / scale).tolist(), wanted.tolist(), over, under, strict=True):
        constraint = solver.Constraint(value, value)
        for factor, coefficient in zip(row, c, strict=True):
            constraint.SetCoefficient(coefficient, factor)
        constraint.SetCoefficient(below, 1.0)
        constraint.SetCoefficient(above, -1.0)
    objective = solver.Objective()
    for variable in (*over, *under):
        objective.SetCoefficient(variable, 1.0)
    objective.SetMinimization()
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return np.zeros(len(c)), np.inf
    return np.array([variable.solution_value() for variable in c]) / scale, float(objective.Value())
