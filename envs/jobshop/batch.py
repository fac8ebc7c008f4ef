"""Many shops stepped in one call: the native batch that environments, training and rollouts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.jobshop import graph as graphs
from dispatchgym.envs.jobshop import kernel, pilot
from dispatchgym.envs.jobshop.graph_rows import GraphArrays
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant
from dispatchgym.envs.jobshop.state import (
    Capacity,
    Mode,
    new_problem,
    new_shop,
    put_instance,
    put_scenario,
)

Builder = Literal["non-delay", "active", "hybrid"]
GraphName = Literal["jobs", "ops", "pilot"]
_NO_ROWS = np.empty((0, 0), np.float32)
_NO_LINKS = np.empty(0, np.int32)
_DELTA = {"non-delay": 0.0, "active": 1.0}


@dataclass(frozen=True, slots=True)
class ShopConfig:
    """Which shop, and how schedules are built in it.

    Args:
        variant: "jssp" classic; "bws" blocking with swaps; "bns" blocking without; "isbjssp" blocking
            with swaps and machine shutdowns.
        builder: classic shop only. Candidates are the jobs that can start by t* + delta (c* - t*), t* the
            earliest start and c* the earliest completion: "non-delay" is delta 0, "active" delta 1.
        delta: of the "hybrid" builder, 0 to 1.
        on_interrupt: what happens to an operation when its machine shuts down.
    """

    variant: Variant = "jssp"
    builder: Builder = "non-delay"
    delta: float | None = None
    on_interrupt: OnInterrupt = "resume"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("variant", self.variant, ("jssp", "bws", "bns", "isbjssp")),
            ("builder", self.builder, ("non-delay", "active", "hybrid")),
            ("on_interrupt", self.on_interrupt, ("resume", "restart")),
        ):
            if value not in known:
                raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
        if self.builder == "hybrid":
            if self.delta is None or not 0.0 <= self.delta <= 1.0:
                raise UsageError(f"builder 'hybrid' needs delta between 0 and 1, got {self.delta!r}")
        elif self.delta is not None:
            raise UsageError(f"delta is {self.delta!r}, but builder {self.builder!r} fixes it; use builder 'hybrid'")
        if self.is_blocking and self.builder != "non-delay":
            raise UsageError(
                f"builder {self.builder!r} exists in the classic shop only; in {self.variant!r} WAIT delays"
            )

    @property
    def is_blocking(self) -> bool:
        return self.variant != "jssp"

    @property
    def builder_name(self) -> str:
        """As results name it: 'non-delay', 'active', 'hybrid-0.5', or 'event' for the blocking shops."""
        if self.is_blocking:
            return "event"
        return f"hybrid-{self.delta:g}" if self.builder == "hybrid" else self.builder

    @property
    def mode(self) -> Mode:
        delta = _DELTA[self.builder] if self.delta is None else self.delta
        return Mode(self.is_blocking, self.variant != "bns", self.on_interrupt == "restart", delta, bound=True)


class ShopBatch:
    """N shops with arrays for state; every method works on all of them at once.

    An action is a job number, or `wait_action` (blocking shops; always the last one). Environments
    that are over stay so, with no candidates, until they are reset.

    Args:
        num_envs: N.
        capacity: the largest instance that will be loaded; memory grows with it.
        config: which shop.
        graph: "jobs" (a node a job), "ops" (a node a remaining operation) or "pilot" (jobs, with look-ahead).
        envs_per_instance: consecutive environments that share one instance.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: Capacity,
        config: ShopConfig,
        graph: GraphName = "jobs",
        envs_per_instance: int = 1,
    ) -> None:
        if num_envs < 1 or envs_per_instance < 1 or num_envs % envs_per_instance:
            raise UsageError(f"{num_envs} environments cannot share instances in groups of {envs_per_instance}")
        if graph not in graphs.SPECS:
            raise UsageError(f"graph is {graph!r}; it must be one of {', '.join(graphs.SPECS)}")
        self.num_envs = num_envs
        self.capacity = capacity
        self.config = config
        self.mode = config.mode
        self.spec: GraphSpec = graphs.SPECS[graph]
        self.envs_per_instance = envs_per_instance
        self.instances: list[Instance | None] = [None] * (num_envs // envs_per_instance)
        self.scenarios: list[Scenario | None] = [None] * num_envs
        self.problem = new_problem(len(self.instances), capacity)
        self.shop = new_shop(num_envs, capacity)
        self.shop.slot[:] = np.arange(num_envs) // envs_per_instance
        self._shop_ptr = np.arange(num_envs + 1, dtype=np.int32)
        self._shop_ptr.setflags(write=False)
        self._scratch = np.empty((3, capacity.machines), np.float32)
        self._machine_row = np.empty(capacity.machines, np.int32)
        self._pilots = pilot.pilots_of(pilot.rules_for(config.is_blocking), capacity) if graph == "pilot" else None

    @classmethod
    def of(
        cls,
        instances: Sequence[Instance],
        config: ShopConfig,
        graph: GraphName = "jobs",
        scenarios: Sequence[Scenario] | None = None,
        envs_per_instance: int = 1,
    ) -> ShopBatch:
        """A batch that holds exactly these instances, reset and ready."""
        batch = cls(len(instances) * envs_per_instance, Capacity.of(instances), config, graph, envs_per_instance)
        batch.load(range(len(instances)), instances)
        if scenarios is not None:
            batch.load_scenarios(range(len(scenarios)), scenarios)
        batch.reset()
        return batch

    @property
    def wait_action(self) -> int:
        """The action WAIT; legal in blocking shops only."""
        return self.capacity.jobs

    @property
    def mask(self) -> npt.NDArray[np.int8]:
        """Legal actions, shape (N, jobs + 1). A view: it changes with the next step."""
        return self.shop.mask

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,): finished, or deadlocked."""
        over: npt.NDArray[np.bool_] = (self.shop.jobs_left == 0) | self.shop.dead.astype(bool)
        return over

    @property
    def makespan(self) -> npt.NDArray[np.int64]:
        """Latest end of a started operation, shape (N,); the makespan once an environment is over."""
        latest: npt.NDArray[np.int64] = self.shop.end.max(axis=1)
        return latest

    def load(self, slots: Sequence[int], instances: Sequence[Instance]) -> None:
        """Put instances into slots; their environments must be reset before the next step."""
        for slot, instance in zip(slots, instances, strict=True):
            put_instance(self.problem, slot, instance, self.config.is_blocking)
            self.instances[slot] = instance

    def load_scenarios(self, envs: Sequence[int], scenarios: Sequence[Scenario]) -> None:
        """Give environments their shutdowns; they must be reset before the next step."""
        if self.config.variant != "isbjssp":
            raise UsageError(f"variant {self.config.variant!r} has no shutdowns; scenarios need 'isbjssp'")
        for i, scenario in zip(envs, scenarios, strict=True):
            instance = self.instances[self.shop.slot[i]]
            if instance is not None and len(scenario.ptr) != instance.num_machines + 1:
                raise UsageError(
                    f"the scenario has {len(scenario.ptr) - 1} machines, "
                    f"instance {instance.name!r} {instance.num_machines}"
                )
            if scenario.on_interrupt != self.config.on_interrupt:
                raise UsageError(
                    f"the scenario says on_interrupt={scenario.on_interrupt!r}, the shop {self.config.on_interrupt!r}"
                )
            self.shop = put_scenario(self.shop, i, scenario)
            self.scenarios[i] = scenario

    def reset(self, which: npt.ArrayLike | None = None) -> None:
        """Start anew all environments, or those flagged in `which`, shape (N,)."""
        flags = np.ones(self.num_envs, np.uint8) if which is None else np.asarray(which, np.uint8)
        for slot in np.unique(self.shop.slot[flags.astype(bool)]):
            if self.instances[slot] is None:
                raise UsageError(f"instance slot {slot} is empty; call load() before reset()")
        kernel.reset_all(self.problem, self.shop, self.mode, flags)

    def step(self, actions: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Carry out one action in every environment that is not over.

        Args:
            actions: integers, shape (N,); ignored where an environment is over.

        Returns:
            (reward, over), each of shape (N,). The reward is minus the growth of the lower bound of the
            makespan, in time units, so that the undiscounted return is the initial bound minus the makespan.

        Raises:
            InvalidActionError: an action is not legal; then no environment has moved.
        """
        chosen = np.ascontiguousarray(actions, np.int64)
        if chosen.shape != (self.num_envs,):
            raise InvalidActionError(f"actions have shape {chosen.shape}, expected ({self.num_envs},)")
        reward = np.empty(self.num_envs, np.float64)
        over = np.empty(self.num_envs, np.bool_)
        wrong = kernel.step_all(self.problem, self.shop, self.mode, chosen, reward, over)
        if wrong >= 0:
            raise InvalidActionError(self.illegal(wrong, int(chosen[wrong])))
        return reward, over

    def illegal(self, i: int, action: int) -> str:
        """The message for an action that is not legal in environment i."""
        legal = np.flatnonzero(self.shop.mask[i])
        names = [f"{a} (WAIT)" if a == self.wait_action else str(a) for a in legal]
        where = f" in environment {i}" if self.num_envs > 1 else ""
        return f"action {action}{where} is not legal now; legal are: {', '.join(names) or 'none, reset first'}"

    def observe(self) -> GraphBatch:
        """Graphs of all environments as fresh arrays: a stored observation never changes."""
        ptr = np.zeros((4, self.num_envs + 1), np.int32)
        graphs.count_all(self.problem, self.shop, ptr)
        offsets = dict(zip(("op", "job", "machine", "candidate"), ptr, strict=True))
        offsets["shop"] = self._shop_ptr
        rows = {name: int(p[-1]) for name, p in offsets.items()}
        x = {n.name: np.empty((rows[n.name], len(n.features)), np.float32) for n in self.spec.nodes}
        link = {edge.name: np.empty(rows[edge.source], np.int32) for edge in self.spec.links}
        candidate = np.empty(rows["candidate"], np.int32)
        action = np.empty(rows["candidate"], np.int32)
        out = self.arrays(x, link, candidate, action)
        self.write(ptr, out)
        node_ptr = {n.name: offsets[n.name] for n in self.spec.nodes}
        return GraphBatch(x, node_ptr, link, candidate, action, offsets["candidate"])

    def write(self, ptr: npt.NDArray[np.int32], out: GraphArrays) -> None:
        """Write the graphs of all environments; `ptr`, (4, N + 1), are their first rows as `count_all` finds them."""
        graphs.write_all(self.problem, self.shop, self.mode, self.spec.graph == "ops", ptr, out)
        self.write_pilots(ptr, out)

    def write_pilots(self, ptr: npt.NDArray[np.int32], out: GraphArrays) -> None:
        """The columns of the look-ahead, if the graph has them."""
        if self._pilots is not None:
            most = pilot.MOST_BLOCKING if self.config.is_blocking else pilot.MOST_CLASSIC
            at = ptr[graphs.JOB]
            pilot.write_pilots(self.problem, self.shop, self.mode, self._pilots, most, at, out.job, out.shop)

    def arrays(
        self,
        x: dict[str, npt.NDArray[np.float32]],
        link: dict[str, npt.NDArray[np.int32]],
        candidate: npt.NDArray[np.int32],
        action: npt.NDArray[np.int32],
    ) -> GraphArrays:
        """The named arrays in the order the kernels want them."""
        ops = self.spec.graph == "ops"
        first, second, third, fourth = ("needs", "of", "then", "first") if ops else ("next", "second", "third", "")
        return GraphArrays(
            op=x["op"] if ops else _NO_ROWS,
            job=x["job"],
            machine=x["machine"],
            shop=x["shop"],
            link_0=link[first],
            link_1=link[second],
            link_2=link[third],
            link_3=link[fourth] if ops else _NO_LINKS,
            holds=link["holds"],
            candidate=candidate,
            action=action,
            free=self._scratch[0],
            load=self._scratch[1],
            slack=self._scratch[2],
            row=self._machine_row,
        )

    def schedule(self, i: int) -> Schedule:
        """The finished schedule of environment i.

        Raises:
            UsageError: it is not finished.
        """
        instance = self.instances[self.shop.slot[i]]
        if instance is None or self.shop.jobs_left[i] > 0:
            raise UsageError(f"environment {i} has no complete schedule; step it until it is over")
        return self.partial_schedule(i)

    def partial_schedule(self, i: int) -> Schedule:
        """What environment i has started so far; operations not started have -1 in all three columns.

        The end of an operation under way is the one it will have if nothing else happens; a blocked job has
        left its machine by now, for drawing.
        """
        instance = self.instances[self.shop.slot[i]]
        if instance is None:
            raise UsageError(f"environment {i} has no instance; call load() and reset() first")
        op = np.arange(instance.num_ops, dtype=np.int64)
        begun = self.shop.next_op[i, : instance.num_jobs].astype(np.int64)
        started = op < np.repeat(begun, np.diff(instance.job_ptr))
        start = np.where(started, self.shop.start[i, : instance.num_ops], -1)
        end = np.where(started, self.shop.end[i, : instance.num_ops], -1)
        leave = end.copy()
        if self.config.is_blocking:
            is_last = np.isin(op, instance.job_ptr[1:] - 1)
            follows = np.append(start[1:], -1)
            now = np.maximum(end, self.shop.now[i])
            leave = np.where(started & ~is_last, np.where(follows >= 0, follows, now), end)
        return Schedule(start, end, leave)
