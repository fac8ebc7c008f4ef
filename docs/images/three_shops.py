"""Draws three_shops.png: the same six jobs under one rule and under CP-SAT, in the three shops.

python docs/images/three_shops.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot

from dispatchgym.envs.jobshop import gantt, library, scenario
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.solvers.jobshop import cp_sat, rules

TITLES = {
    "jssp": "classic: infinite buffers",
    "bws": "blocking: a finished job keeps its machine (pale) until the next one is free",
    "isbjssp": "interrupting: machines shut down (hatched)",
}


def main() -> None:
    instance = library.load("ft06")
    figure, axes = pyplot.subplots(3, 2, figsize=(16, 8.4), layout="constrained")
    for row, (variant, title) in zip(axes, TITLES.items(), strict=True):
        shutdowns = scenario.draw(instance, 0.2, 3) if variant == "isbjssp" else None
        config = ShopConfig(variant)  # type: ignore[arg-type]
        ruled = rules.rollout(instance, "mwkr", config, scenario=shutdowns).schedule
        solved = cp_sat.solve(instance, variant=config.variant, scenario=shutdowns, deterministic_limit=20)
        assert solved.schedule is not None
        informed = " told every shutdown" if shutdowns else ""
        for axis, schedule, name in (
            (row[0], ruled, "most work remaining"),
            (row[1], solved.schedule, f"CP-SAT{informed}, {solved.status}"),
        ):
            axis.imshow(np.asarray(gantt.draw(instance, schedule, shutdowns)))
            axis.set_title(f"{title}\n{name}: makespan {schedule.makespan}", fontsize=11)
            axis.axis("off")
    figure.savefig(Path(__file__).with_name("three_shops.png"), dpi=80)


if __name__ == "__main__":
    main()
