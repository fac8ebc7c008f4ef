"""Hypothesis strategies for small job-shop problems."""

from __future__ import annotations

from hypothesis import strategies as st

from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario


@st.composite
def instances(
    draw: st.DrawFn, *, min_duration: int = 1, max_duration: int = 5, max_jobs: int = 4, max_machines: int = 4
) -> Instance:
    """Jobs of unequal length that may come back to a machine, some released or arriving late."""
    num_jobs = draw(st.integers(1, max_jobs))
    num_machines = draw(st.integers(1, max_machines))
    operation = st.tuples(st.integers(0, num_machines - 1), st.integers(min_duration, max_duration))
    routes = draw(st.lists(st.lists(operation, min_size=1, max_size=4), min_size=num_jobs, max_size=num_jobs))
    times = st.lists(st.integers(0, 6), min_size=num_jobs, max_size=num_jobs)
    return Instance.from_routes("drawn", routes, num_machines, release=draw(times), arrival=draw(times))


@st.composite
def scenarios(draw: st.DrawFn, num_machines: int) -> Scenario:
    """Up to three shutdowns a machine within the first times of a small instance."""
    rows = []
    for machine in range(num_machines):
        now = draw(st.integers(0, 5))
        for _ in range(draw(st.integers(0, 3))):
            length = draw(st.integers(1, 4))
            rows.append({"machine": machine, "from": now, "to": now + length})
            now += length + draw(st.integers(1, 5))
    modes: tuple[OnInterrupt, ...] = ("resume", "restart")
    return Scenario.from_downtime(num_machines, rows, draw(st.sampled_from(modes)))
