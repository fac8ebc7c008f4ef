"""Many engines played in one call: the native batch that environments, training and tuning share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, UsageError
from dispatchgym.envs.llm.apply import REPAIRS
from dispatchgym.envs.llm.batching import BatchingRule
from dispatchgym.envs.llm.columns import Choices, new_choices
from dispatchgym.envs.llm.draws import HISTORY, Serving
from dispatchgym.envs.llm.executor import Executor, batch_of
from dispatchgym.envs.llm.graph import MERIT, NUM_COLUMNS, SPEC, WEIGHTS
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.sight import new_sight
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.turns import BOOK, EPISODE, Turns, play

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reward:
    """What a decision earns, summed over the steps that it leads to.

    Args:
        credit: for a request that met all its bounds; half of it is paid, subject to the rest, with its first token.
        crowd: cost of a request that is there for a second: -N(t) dt.
        recompute: cost of a token computed again.
        lasting: cost of the problem's `reference_s`, for each of its requests: 1 makes the return, a request, the share
            that met its bounds less the time that all took in that unit.
        fading: what is paid t seconds later counts exp(-fading x t).
    """

    credit: float = 1.0
    crowd: float = 0.01
    recompute: float = 1e-4
    lasting: float = 0.0
    fading: float = 0.0

    def __post_init__(self) -> None:
        if not self.fading >= 0:
            raise UsageError(f"reward.fading is {self.fading}; it must be at least 0, which is no discount")


@dataclass(frozen=True, slots=True)
class ChoicesConfig:
    """How the choices of a step are listed.

    Args:
        most: choices of a list, RUN and WAIT included.
        merit: weights of the linear rule, a row a kind of choices and a column a feature; default the graph's own.
    """

    most: int = 64
    merit: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.most < 16:
            raise UsageError(f"choices.most is {self.most}; at least 16 are needed to show every kind")

    @property
    def weights(self) -> F64:
        """Weights of the merit.

        Raises:
            UsageError: a table of another shape.
        """
        if not self.merit:
            return WEIGHTS
        if {len(row) for row in self.merit} != {NUM_COLUMNS - 1} or len(self.merit) != len(WEIGHTS):
            raise UsageError(f"choices.merit must be a table of {len(WEIGHTS)} x {NUM_COLUMNS - 1} numbers")
        return np.array(self.merit)


@dataclass(frozen=True, slots=True)
class Room:
    """The largest engine and workload that a batch has room for.

    Args:
        requests, hashes: of a workload. blocks: of the pool. seqs: places. row: blocks of the longest request.
    """

    requests: int
    hashes: int
    blocks: int
    seqs: int
    row: int

    @classmethod
    def of(cls, servings: Sequence[Serving]) -> Room:
        """Room for each of these."""
        if not servings:
            raise UsageError("no problem to make room for; give at least one")
        states = [_fresh(serving) for serving in servings]
        return cls(
            max(len(s.req) for s in states),
            max(len(s.hashes) for s in states),
            max(len(s.block) - 1 for s in states),
            max(len(s.run) for s in states),
            max(s.table.shape[1] for s in states),
        )


def _fresh(serving: Serving) -> State:
    return fresh_state(serving.workload, serving.engine, serving.profile, 0, steps=False, tokens=False)


class EngineBatch:
    """N engines with workloads ahead of them; choices without an alternative make themselves.

    Args:
        num_envs: N.
        room: of each.
        config: how choices are listed.
        reward: what is paid.
    """

    spec = SPEC

    def __init__(
        self, num_envs: int, room: Room, config: ChoicesConfig | None = None, reward: Reward | None = None
    ) -> None:
        self.num_envs = num_envs
        self.room = room
        self.config = config or ChoicesConfig()
        self.reward = reward or Reward()
        self.turns = Turns(
            state=_new_states(num_envs, room),
            sight=_stack(new_sight(room.requests + 1, self.config.most), num_envs),
            choices=_stack(new_choices(self.config.most, self.config.weights), num_envs),
            episode=np.zeros(num_envs, EPISODE),
            default=BatchingRule().packed(),
            counts=np.zeros((num_envs, len(REPAIRS)), np.int64),
            first=np.full(3, -1, np.int64),
            how=np.zeros(room.requests + 1, np.int32),
        )
        self.turns.episode["over"] = 1
        self._makers: dict[int, Callable[[State], Executor]] = {}
        self._executors: dict[int, Executor] = {}

    def state(self, i: int) -> State:
        """The arrays of engine i."""
        mine = State(*(array[i] for array in self.turns.state))
        return mine._replace(req=mine.req[: int(mine.eng["num"][0])])

    def run_elsewhere(self, i: int, executor: Callable[[State], Executor]) -> None:
        """Let an executor run the steps of engine i, freshly loaded.

        Args:
            executor: called with the engine's arrays at its first step; until then others may run what it returns.
        """
        self._makers[i] = executor
        self._executors.pop(i, None)
        self.turns.episode["elsewhere"][i] = 1

    def load(self, i: int, serving: Serving, copies: int = 1) -> None:
        """Put a problem into engines i .. i + copies - 1, at its beginning; `begin` is next.

        Raises:
            UsageError: it is larger than the room.
        """
        fresh, states = _fresh(serving), self.turns.state
        if len(fresh.history) != HISTORY:
            raise UsageError(f"engine: history {len(fresh.history)}; environments keep {HISTORY} lengths")
        for name, source in fresh._asdict().items():
            target = getattr(states, name)
            if any(a > b for a, b in zip(source.shape, target.shape[1:], strict=True)) and name != "map_key":
                if name in ("map_block", "crossing"):
                    continue
                raise UsageError(f"problem: {name} of {source.shape} is more than there is room for {target.shape[1:]}")
            own = target[i : i + copies]
            own[...] = np.zeros((), source.dtype)
            if name not in ("map_key", "map_block"):
                own[(slice(None), *(slice(size) for size in source.shape))] = source
        episode = self.turns.episode[i : i + copies]
        episode[...] = np.zeros((), EPISODE)
        episode["fresh"] = 1
        episode["mean_slo"] = serving.workload.slo_kind == "mean"
        episode["max_wait_s"] = serving.engine.max_wait_s
        for name in ("credit", "crowd", "recompute"):
            episode[name] = getattr(self.reward, name)
        episode["lasting"] = self.reward.lasting * len(serving.workload) / serving.reference_s
        self.turns.counts[i : i + copies] = 0
        self.turns.sight.head["passed"][i : i + copies] = 0

    def begin(self) -> F64:
        """After loading: go to the first real choice; returns the rewards on the way, shape (N,)."""
        return self.step(np.full(self.num_envs, -1, np.int64))

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> F64:
        """Carry out choice `actions[i]` of engine i's list (-1: none), and what is without alternative.

        Returns:
            Rewards, shape (N,).
        """
        return self._play(actions.astype(np.int64), False)

    def finish(self) -> F64:
        """Let the merit play every engine to its end; returns the rewards on the way, shape (N,)."""
        return self._play(np.full(self.num_envs, -1, np.int64), True)

    def _play(self, actions: npt.NDArray[np.int64], to_end: bool) -> F64:
        reward = np.zeros(self.num_envs)
        play(self.turns, actions, reward, to_end)
        episode = self.turns.episode
        while self._makers and episode["pending"].any():
            more, book = np.zeros(self.num_envs), np.full(self.num_envs, -1, np.int64)
            for i in np.flatnonzero(episode["pending"]).tolist():
                state = self.state(i)
                if i not in self._executors:
                    self._executors[i] = self._makers[i](state)
                result = self._executors[i].run(batch_of(state), np.inf)
                rows = state.batch[: state.eng["batch"][0]]
                rows["emitted"], rows["stopped"] = result.emitted, result.stopped
                episode["duration_s"][i], book[i] = result.duration_s, BOOK
            play(self.turns, book, more, to_end)
            reward += more
        return reward

    def reweigh(self, weights: F64) -> None:
        """Rank by other weights of the merit from the next list on."""
        self.turns.choices.weights[:] = weights

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        found: npt.NDArray[np.bool_] = self.turns.episode["over"] == 1
        return found

    @property
    def count(self) -> npt.NDArray[np.int64]:
        """Choices of every list, 0 where it is over, shape (N,)."""
        found: npt.NDArray[np.int64] = np.where(self.over, 0, self.turns.choices.size[:, 0])
        return found

    @property
    def discount(self) -> F64:
        """What a reward after the time since the last decision is worth, shape (N,)."""
        found: F64 = np.exp(-self.reward.fading * self.turns.episode["elapsed_s"])
        return found

    @property
    def now_s(self) -> F64:
        """Clocks, shape (N,)."""
        found: F64 = self.turns.state.eng["now"][:, 0].copy()
        return found

    @property
    def requests(self) -> npt.NDArray[np.int64]:
        """Requests of every workload, shape (N,)."""
        found: npt.NDArray[np.int64] = self.turns.state.eng["num"][:, 0].copy()
        return found

    @property
    def met(self) -> npt.NDArray[np.int64]:
        """Requests that met all their bounds, shape (N,)."""
        found: npt.NDArray[np.int64] = self.turns.episode["met"].copy()
        return found

    def repairs(self, i: int) -> dict[str, int]:
        """What the engine had to change in engine i's plans: kind -> times."""
        return {name: int(n) for name, n in zip(REPAIRS, self.turns.counts[i], strict=True) if n}

    def observe(self) -> GraphBatch:
        """Graphs of all engines, as fresh arrays; those that are over have no choices."""
        return graphs_of(self.turns.choices, self.count)


def graphs_of(choices: Choices, count: npt.NDArray[np.int64]) -> GraphBatch:
    """Graphs of stacked choices, of which `count` are listed, shape (N,)."""
    n, most = choices.kind.shape
    listed = np.arange(most) < count[:, None]
    prefixes = np.where(count > 0, choices.size[:, 1], 0)
    ptr, prefix_ptr = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    np.cumsum(count, out=ptr[1:])
    np.cumsum(prefixes, out=prefix_ptr[1:])
    own = choices.prefix[listed]
    rows = np.arange(ptr[-1], dtype=np.int32)
    place = np.broadcast_to(np.arange(most, dtype=np.int32), (n, most))[listed]
    offset = np.repeat(prefix_ptr[:-1], count)
    return GraphBatch(
        x={
            "request": choices.row[listed],
            "prefix": choices.prefix_row[np.arange(most) < prefixes[:, None]],
            "engine": choices.engine.copy(),
        },
        ptr={"request": ptr, "prefix": prefix_ptr, "engine": np.arange(n + 1, dtype=np.int32)},
        link={"shares": np.where(own >= 0, own + offset, -1).astype(np.int32)},
        candidate=rows,
        action=place,
        candidate_ptr=ptr,
    )


def best_listed(choices: Choices, count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The choice of the highest merit of every list, -1 of an empty one, shape (N,)."""
    merit = np.where(np.arange(choices.kind.shape[1]) < count[:, None], choices.row[:, :, MERIT], -np.inf)
    return np.where(count > 0, merit.argmax(axis=1), -1)


def _stack(one: Any, n: int) -> Any:
    """Arrays of a named tuple, n times."""
    return type(one)(*(np.repeat(array[None], n, axis=0) for array in one))


def _new_states(n: int, room: Room) -> State:
    """Arrays of n engines with room for the largest, all zero."""
    one = _fresh(_tiny())
    shapes = {
        "req": (room.requests,),
        "hashes": (max(room.hashes, 1),),
        "block": (room.blocks + 1,),
        "map_key": (1 << (2 * room.blocks).bit_length(),),
        "map_block": (1 << (2 * room.blocks).bit_length(),),
        "table": (room.seqs, room.row),
        "slot": (room.seqs,),
        "run": (room.seqs,),
        "batch": (room.seqs,),
        "group": (room.seqs,),
        "swap_in": (room.seqs, 2),
        "pad": (room.seqs + 1,),
    }
    return State(*(np.zeros((n, *shapes.get(name, array.shape)), array.dtype) for name, array in one._asdict().items()))


def _tiny() -> Serving:
    from dispatchgym.envs.llm.config import EngineConfig
    from dispatchgym.envs.llm.profile import load_profile
    from dispatchgym.envs.llm.workload import Workload

    engine = EngineConfig(kv_blocks=4, max_seqs=1, history=HISTORY)
    one = np.ones(1, np.int32)
    return Serving(Workload(np.zeros(1), one, one), engine, load_profile("h200-8b"))
