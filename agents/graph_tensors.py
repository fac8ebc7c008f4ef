"""Graph observations as torch tensors: from the environments, picked apart, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.envs.api import GraphBatch, GraphSpec


class GraphTensors(NamedTuple):
    """`GraphBatch` in torch: G graphs, concatenated without padding; without the environments' action numbers.

    Attributes:
        x: node type -> float32 features, shape (nodes of that type, features).
        ptr: node type -> int64 offsets, shape (G + 1,).
        link: link name -> int64 row of the target node, -1 for none, shape (nodes of the source type,).
        candidate: int64 row of the candidate's node, -1 for the context node (WAIT), shape (C,).
        candidate_ptr: int64 offsets into `candidate`, shape (G + 1,).
    """

    x: dict[str, Tensor]
    ptr: dict[str, Tensor]
    link: dict[str, Tensor]
    candidate: Tensor
    candidate_ptr: Tensor

    @property
    def num_graphs(self) -> int:
        return self.candidate_ptr.shape[0] - 1

    def nodes_per_graph(self) -> Tensor:
        """Nodes of all types together, shape (G,)."""
        return sum((ptr.diff() for ptr in self.ptr.values()), torch.zeros_like(self.candidate_ptr[1:]))

    def to_dict(self) -> dict[str, Tensor]:
        """Flat form, for libraries that pass dictionaries of arrays along; `from_dict` undoes it."""
        flat = {"candidate": self.candidate, "candidate_ptr": self.candidate_ptr}
        for field in ("x", "ptr", "link"):
            flat |= {f"{field}/{name}": value for name, value in getattr(self, field).items()}
        return flat

    @classmethod
    def from_dict(cls, flat: Mapping[str, Tensor]) -> GraphTensors:
        parts: dict[str, dict[str, Tensor]] = {"x": {}, "ptr": {}, "link": {}}
        for key, value in flat.items():
            field, slash, name = key.partition("/")
            if slash and field in parts:
                parts[field][name] = value
        return cls(parts["x"], parts["ptr"], parts["link"], flat["candidate"], flat["candidate_ptr"])

    @classmethod
    def from_batch(cls, batch: GraphBatch, device: torch.device | str = "cpu") -> GraphTensors:
        """The batch's arrays on `device`; index arrays become int64."""

        def index(array: npt.NDArray[np.int32]) -> Tensor:
            return torch.from_numpy(array.astype(np.int64)).to(device)

        return cls(
            {name: torch.as_tensor(value, device=device) for name, value in batch.x.items()},
            {name: index(value) for name, value in batch.ptr.items()},
            {name: index(value) for name, value in batch.link.items()},
            index(batch.candidate),
            index(batch.candidate_ptr),
        )


def ragged_rows(start: Tensor, count: Tensor, total: int) -> Tensor:
    """start[0] .. start[0] + count[0] - 1, start[1] .. and so on, shape (total,) with total = count.sum()."""
    begin = count.cumsum(0) - count
    shift = torch.repeat_interleave(start - begin, count, output_size=total)
    return torch.arange(total, device=start.device) + shift


def owner(ptr: Tensor, rows: int) -> Tensor:
    """Graph of every row, shape (rows,)."""
    graphs = torch.arange(ptr.shape[0] - 1, device=ptr.device)
    return torch.repeat_interleave(graphs, ptr.diff(), output_size=rows)


def select(spec: GraphSpec, graphs: GraphTensors, index: Tensor) -> GraphTensors:
    """Graphs `index`, int64 of shape (K,), in that order."""
    x, ptr, link, shift, rows = {}, {}, {}, {}, {}
    for node in spec.nodes:
        name = node.name
        start, count = graphs.ptr[name][index], graphs.ptr[name].diff()[index]
        ptr[name] = torch.cat((count.new_zeros(1), count.cumsum(0)))
        rows[name] = ragged_rows(start, count, int(ptr[name][-1]))
        x[name] = graphs.x[name].index_select(0, rows[name])
        shift[name] = ptr[name][:-1] - start
    for edge in spec.links:
        moved = _moved(graphs.link[edge.name].index_select(0, rows[edge.source]), shift[edge.target], ptr[edge.source])
        link[edge.name] = moved
    start, count = graphs.candidate_ptr[index], graphs.candidate_ptr.diff()[index]
    candidate_ptr = torch.cat((count.new_zeros(1), count.cumsum(0)))
    chosen = graphs.candidate[ragged_rows(start, count, int(candidate_ptr[-1]))]
    return GraphTensors(x, ptr, link, _moved(chosen, shift[spec.candidate], candidate_ptr), candidate_ptr)


def _moved(target: Tensor, shift: Tensor, ptr: Tensor) -> Tensor:
    """Target rows after their graphs moved by `shift`, (G,); -1 stays."""
    by = torch.repeat_interleave(shift, ptr.diff(), output_size=target.shape[0])
    return torch.where(target >= 0, target + by, target)


def concatenate(spec: GraphSpec, parts: Sequence[GraphTensors]) -> GraphTensors:
    """One batch of all graphs, in order. `parts` must not be empty."""

    def offsets(sizes: list[int]) -> list[int]:
        total, before = 0, []
        for size in sizes:
            before.append(total)
            total += size
        return before

    def joined_ptr(ptrs: list[Tensor], before: list[int]) -> Tensor:
        moved = [ptr[1:] + shift for ptr, shift in zip(ptrs, before, strict=True)]
        return torch.cat((ptrs[0][:1], *moved))

    def joined_rows(targets: list[Tensor], before: list[int]) -> Tensor:
        return torch.cat([torch.where(t >= 0, t + by, t) for t, by in zip(targets, before, strict=True)])

    first = {n.name: offsets([p.x[n.name].shape[0] for p in parts]) for n in spec.nodes}
    return GraphTensors(
        {n.name: torch.cat([p.x[n.name] for p in parts]) for n in spec.nodes},
        {n.name: joined_ptr([p.ptr[n.name] for p in parts], first[n.name]) for n in spec.nodes},
        {e.name: joined_rows([p.link[e.name] for p in parts], first[e.target]) for e in spec.links},
        joined_rows([p.candidate for p in parts], first[spec.candidate]),
        joined_ptr([p.candidate_ptr for p in parts], offsets([p.candidate.shape[0] for p in parts])),
    )
