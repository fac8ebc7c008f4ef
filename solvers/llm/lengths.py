"""Guesses of output lengths, from the truth downwards."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import EngineView
from dispatchgym.solvers.llm.peak import Numbers

Kind = Literal["oracle", "noisy", "max"]


class Lengths:
    """A guess of each request's output length, the same whenever it is asked.

    Args:
        kind: "oracle" the truth; "noisy" the truth times a lognormal factor; "max" what the client allows.
        sigma: standard deviation of the factor's logarithm.
    """

    def __init__(self, kind: Kind, sigma: float = 0.5) -> None:
        if kind not in ("oracle", "noisy", "max"):
            raise UsageError(f"lengths {kind!r} is not one of 'oracle', 'noisy', 'max'")
        self.kind = kind
        self.sigma = sigma if kind == "noisy" else 0.0
        self._seed = 0

    def reset(self, seed: int) -> None:
        self._seed = seed

    def guess(self, view: EngineView) -> tuple[Numbers, Numbers]:
        """Output lengths of the running and of the waiting, at least 1 and more than what is out."""
        if self.kind == "max":
            return view.running.max_new_tokens, view.waiting.max_new_tokens
        assert view.oracle is not None
        pairs = ((view.running, view.oracle.running_output), (view.waiting, view.oracle.waiting_output))
        running, waiting = (
            np.clip(np.rint(true * self._factor(table.id)), table.generated + 1, table.max_new_tokens)
            for table, true in pairs
        )
        return running, waiting

    def _factor(self, ids: Numbers) -> Numbers:
        """One factor a request, from its number alone: two uniform numbers make a normal one."""
        if not self.sigma:
            return np.ones(len(ids))
        x = ids.astype(np.uint64) + np.uint64(self._seed * 0x9E3779B97F4A7C15 % 2**64)
        uniform = []
        for salt in (0x632BE59BD9B4E019, 0xD6E8FEB86659FD93):
            z = (x ^ np.uint64(salt)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
            uniform.append(((z ^ (z >> np.uint64(32))) >> np.uint64(11)).astype(np.float64) / 2**53)
        normal = np.sqrt(-2 * np.log(uniform[0] + 1e-300)) * np.cos(2 * np.pi * uniform[1])
        return np.asarray(np.exp(self.sigma * normal))
