"""Every step of every run as JSON lines, so that anyone can check them without this package."""

from __future__ import annotations

from pathlib import Path

from dispatchgym.agents.evaluation.family import Finished


def write_evidence(finished: Finished, folder: Path) -> None:
    """TODO"""
