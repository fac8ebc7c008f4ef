"""What every world shares: the error tree and the contract of a graph observation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


class DispatchGymError(Exception):
    """Root of every error that dispatchgym raises on purpose."""


class UnknownNameError(DispatchGymError, KeyError):
    """A name that no registry knows; the message offers the closest ones."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class InvalidActionError(DispatchGymError, ValueError):
    """An action that the mask forbids; the message names the legal ones."""


class InvalidInstanceError(DispatchGymError, ValueError):
    """Problem data that cannot be; the message names the file, the line and the value."""


class InvalidScheduleError(DispatchGymError, ValueError):
    """A schedule that breaks a constraint; the message names the operations and the times."""


class InvalidPlanError(DispatchGymError, ValueError):
    """A scheduler's order that cannot be carried out; the message names the policy, the step and the order."""


class UsageError(DispatchGymError, ValueError):
    """A request that cannot be carried out as asked; the message names the way out."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a node type's feature matrix.

    `low` and `high` are the range the column is expected to stay in, in `unit`; they document
    and test the observation, they do not clip it.
    """

    name: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node and its feature columns, in order."""

    name: str
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A many-to-one edge type: each `source` node points at one `target` node, or at none (-1).

    Stored as one int32 column per source node instead of a two-row edge index: resources are
    hubs, so an edge list would only repeat the node's own number.
    """

    name: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """The declared shape of a graph observation.

    `candidate` names the node type that is scored; a WAIT or RUN candidate is scored on the
    single node of type `context`.
    """

    family: str
    graph: str
    version: int
    nodes: tuple[NodeType, ...]
    links: tuple[Link, ...]
    candidate: str
    context: str

    @property
    def digest(self) -> str:
        """sha256 of the declaration: a policy trained for another one must be refused."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def node(self, name: str) -> NodeType:
        """The node type of that name."""
        return next(n for n in self.nodes if n.name == name)

    def links_of(self, source: str) -> tuple[Link, ...]:
        """The links whose column lives on nodes of type `source`."""
        return tuple(link for link in self.links if link.source == source)


class GraphBatch(NamedTuple):
    """Graphs of N environments, concatenated without padding.

    Attributes:
        x: node type -> float32 features, shape (nodes of that type, features).
        ptr: node type -> int32 offsets, shape (N + 1,): environment i owns rows ptr[i]:ptr[i + 1].
        link: link name -> int32 row of the target node (counted over the whole batch), -1 for none,
            shape (nodes of the link's source type,).
        candidate: int32 row of the candidate's node, -1 for the context node (WAIT), shape (C,).
        action: int32 action that picks the candidate, shape (C,).
        candidate_ptr: int32 offsets into `candidate` and `action`, shape (N + 1,).
    """

    x: dict[str, npt.NDArray[np.float32]]
    ptr: dict[str, npt.NDArray[np.int32]]
    link: dict[str, npt.NDArray[np.int32]]
    candidate: npt.NDArray[np.int32]
    action: npt.NDArray[np.int32]
    candidate_ptr: npt.NDArray[np.int32]
