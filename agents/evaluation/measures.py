"""What the value of a run can be: its name, its unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """How a value is compared and shown.

    Args:
        title: a column's head.
        unit: behind a number: '%' or ''.
        is_share: differences are points; otherwise they are per cent of the base's value.
        more_is_better: the highest wins.
        is_all_or_nothing: of one run it is 0 or 100, so that only its mean says something.
    """

    title: str
    unit: str = "%"
    is_share: bool = True
    more_is_better: bool = False
    is_all_or_nothing: bool = False

    def better(self, value: float) -> float:
        """A number that is the lower the better."""
        return -value if self.more_is_better else value


MEASURES = {
    "gap_pct": Measure("mean gap"),
    "makespan": Measure("mean makespan", "", is_share=False),
    "improved_pct": Measure("improved on default", more_is_better=True, is_all_or_nothing=True),
    "gpu_allocation_pct": Measure("GPU allocation", more_is_better=True),
    "mean_gpu_allocation_pct": Measure("GPU allocation over time", more_is_better=True),
    "goodput_rps": Measure("requests in time a second", "", is_share=False, more_is_better=True),
    "goodput_tps": Measure("tokens in time a second", "", is_share=False, more_is_better=True),
    "hindsight_pct": Measure("above the best without preemption"),
}
"""By the names that results.json and summary.json use."""
