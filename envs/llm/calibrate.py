"""Fits a latency profile to measured steps: least absolute relative error, with the profile's own formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp  # type: ignore[import-untyped]

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.profile import Profile

F64 = npt.NDArray[np.float64]

COLUMNS = ("base_s", "token_s", "row_s", "pair_s", "context_s", "chunk_s", "mixed_s")
"""Coefficients that are fitted; `weights_s` comes with `token_s`, from the batch size up to which a step is as long."""

KNEES = 24
"""Batch sizes that are tried for that, and once more between the neighbours of the best."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the time of a step without swapping depends on; see Profile.

    Attributes:
        decodes, prefills: requests that decode, and that read their prompt.
        decode_tokens, prefill_tokens: that they run.
        pairs: (query, key) pairs inside prompt pieces. read: tokens whose KV attention reads.
        seconds: measured.
    """

    decodes: int
    prefills: int
    decode_tokens: int
    prefill_tokens: int
    pairs: int
    read: int
    seconds: float


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
            if step.prefills == 0
            else step.decode_tokens + step.prefill_tokens
            for step in steps
        ],
        np.float64,
    )  # fmt: skip


def predict(profile: Profile, steps: Sequence[StepCost]) -> F64:
    """Seconds of each step by the profile, shape (steps,)."""
    terms = np.array([getattr(profile, name) for name in COLUMNS])
    columns = _columns(profile, steps, 0.0)
    columns[:, 1] = 0.0
    work: F64 = np.maximum(profile.weights_s, profile.token_s * positions(profile, steps))
    return np.asarray(columns @ terms + work, np.float64)


def relative_errors(profile: Profile, steps: Sequence[StepCost]) -> F64:
    """|predicted / measured - 1| of each step."""
    return np.asarray(np.abs(predict(profile, steps) / np.array([step.seconds for step in steps]) - 1.0))


def fit(rough: Profile, steps: Sequence[StepCost]) -> Profile:
    """The profile with the coefficients that explain the steps best; none is below 0.

    Raises:
        UsageError: there are too few steps.
    """
    if len(steps) < 2 * len(COLUMNS):
        raise UsageError(f"calibration: {len(steps)} measured steps are too few for {len(COLUMNS)} coefficients")
    seconds = np.array([step.seconds for step in steps])
    largest = float(positions(rough, steps).max())
    best, best_error, best_knee = np.zeros(len(COLUMNS)), np.inf, 0.0
    low, high = 1.0, max(largest, 2.0)
    for _ in range(2):
        for knee in (0.0, *np.geomspace(low, high, KNEES).tolist()):
            found, error = _least_absolute(_columns(rough, steps, knee) / seconds[:, None])
            if error < best_error * (1 - 1e-9):
                best, best_error, best_knee = found, error, knee
        stride = (high / low) ** (1 / (KNEES - 1))
        low, high = max(best_knee / stride, 1.0), max(best_knee * stride, 2.0)
    terms = dict(zip(COLUMNS, best.tolist(), strict=True))
    weights_s = terms["token_s"] * best_knee
    if terms["base_s"] + weights_s <= 0:
        terms["base_s"] = 1e-9
    return replace(
        rough, source="measured", weights_s=weights_s, base_s=terms["base_s"], token_s=terms["token_s"],
        row_s=terms["row_s"], pair_s=terms["pair_s"], context_s=terms["context_s"], chunk_s=terms["chunk_s"],
        mixed_s=terms["mixed_s"],
    )  # fmt: skip


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


def _columns(profile: Profile, steps: Sequence[StepCost], knee: float) -> F64:
    """What each coefficient is multiplied with, shape (steps, COLUMNS); `token_s` never with less than `knee`."""
    rows = [
        (1.0, 0.0, step.decodes + step.prefills, step.pairs, step.read, step.prefills, step.decodes > 0 < step.prefills)
        for step in steps
    ]
    columns = np.array(rows, np.float64)
    columns[:, 1] = np.maximum(positions(profile, steps), knee)
    return columns


def _least_absolute(columns: F64) -> tuple[F64, float]:
    """Coefficients >= 0 with the least sum of |columns @ c - 1|, and that sum."""
    scale = columns.max(0)
    scale[scale == 0] = 1.0
    solver = pywraplp.Solver.CreateSolver("GLOP")
    c = [solver.NumVar(0.0, solver.infinity(), "") for _ in range(columns.shape[1])]
    over = [solver.NumVar(0.0, solver.infinity(), "") for _ in columns]
    under = [solver.NumVar(0.0, solver.infinity(), "") for _ in columns]
    for row, above, below in zip((columns / scale).tolist(), over, under, strict=True):
        constraint = solver.Constraint(1.0, 1.0)
        for value, coefficient in zip(row, c, strict=True):
            constraint.SetCoefficient(coefficient, value)
        constraint.SetCoefficient(below, 1.0)
        constraint.SetCoefficient(above, -1.0)
    objective = solver.Objective()
    for variable in (*over, *under):
        objective.SetCoefficient(variable, 1.0)
    objective.SetMinimization()
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return np.zeros(len(c)), np.inf
    return np.array([variable.solution_value() for variable in c]) / scale, float(objective.Value())
