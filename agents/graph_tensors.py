"""Graph observations as torch tensors: from the environments, picked apart, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dispatchgym.envs.api import GraphBatch, GraphSpec


class Most(NamedTuple):
    """Sizes of a batch's largest graph: nodes of the candidates' type, candidates."""

    nodes: int
    candidates: int


class GraphTensors(NamedTuple):
    """`GraphBatch` in torch: G graphs, concatenated without padding; without the environments' action numbers.

    Attributes:
        x: node type -> float32 features, shape (nodes of that type, features).
        ptr: node type -> int64 offsets, shape (G + 1,).
        link: link name -> int64 row of the target node, -1 for none, shape (nodes of the source type,).
        candidate: int64 row of the candidate's node, -1 for the context node (WAIT), shape (C,).
        candidate_ptr: int64 offsets into `candidate`, shape (G + 1,).
        most: what the largest graph holds, where that is known on the host: a GPU need not be asked for it.
    """

    x: dict[str, Tensor]
    ptr: dict[str, Tensor]
    link: dict[str, Tensor]
    candidate: Tensor
    candidate_ptr: Tensor
    most: Most | None = None

    @property
    def num_graphs(self) -> int:
        return self.candidate_ptr.shape[0] - 1

    def most_of(self, node: str) -> Most:
        """`most`, counted if need be; `node` is the candidates' type."""
        if self.most is not None:
            return self.most
        if self.num_graphs == 0:
            return Most(0, 0)
        return Most(int(self.ptr[node].diff().max()), int(self.candidate_ptr.diff().max()))

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


def owner(ptr: Tensor, rows: int) -> Tensor:
    """Graph of every row, shape (rows,)."""
    graphs = torch.arange(ptr.shape[0] - 1, device=ptr.device)
    return torch.repeat_interleave(graphs, ptr.diff(), output_size=rows)


class Cut(NamedTuple):
    """Sizes of a selection of graphs, known on the host.

    Attributes:
        rows: node type -> nodes of that type.
        candidates: candidates of all its graphs.
        most: of its largest graphs.
    """

    rows: dict[str, int]
    candidates: int
    most: Most


def cuts(spec: GraphSpec, graphs: GraphTensors, order: Tensor, sizes: Sequence[int]) -> list[Cut]:
    """Sizes of the selections that `order`, split into `sizes`, makes; the device is asked once for all of them."""
    counts = torch.stack([*(graphs.ptr[n.name].diff() for n in spec.nodes), graphs.candidate_ptr.diff()])[:, order]
    part = torch.repeat_interleave(
        torch.arange(len(sizes), device=order.device), torch.tensor(sizes, device=order.device), output_size=len(order)
    ).expand_as(counts)
    empty = counts.new_zeros(len(counts), len(sizes))
    totals, largest = torch.stack((empty.scatter_add(1, part, counts), empty.scatter_reduce(1, part, counts, "amax")))
    found = torch.stack((totals.T, largest.T), 1).tolist()
    names = [n.name for n in spec.nodes]
    at = names.index(spec.candidate)
    return [
        Cut(dict(zip(names, total, strict=False)), total[-1], Most(biggest[at], biggest[-1]))
        for total, biggest in found
    ]


def select(spec: GraphSpec, graphs: GraphTensors, index: Tensor, cut: Cut | None = None) -> GraphTensors:
    """Graphs `index`, int64 of shape (K,), in that order; `cut`, their sizes, spares asking the device."""
    cut = cut or cuts(spec, graphs, index, [len(index)])[0]
    x, ptr, link, shift, rows = {}, {}, {}, {}, {}
    for node in spec.nodes:
        name = node.name
        start, count = graphs.ptr[name][index], graphs.ptr[name].diff()[index]
        ptr[name] = functional.pad(count.cumsum(0), (1, 0))
        shift[name] = ptr[name][:-1] - start
        rows[name] = _rows(shift[name], count, cut.rows[name])
        x[name] = graphs.x[name].index_select(0, rows[name])
    for edge in spec.links:
        moved = _moved(graphs.link[edge.name].index_select(0, rows[edge.source]), shift[edge.target], ptr[edge.source])
        link[edge.name] = moved
    start, count = graphs.candidate_ptr[index], graphs.candidate_ptr.diff()[index]
    candidate_ptr = functional.pad(count.cumsum(0), (1, 0))
    chosen = graphs.candidate.index_select(0, _rows(candidate_ptr[:-1] - start, count, cut.candidates))
    chosen = _moved(chosen, shift[spec.candidate], candidate_ptr)
    return GraphTensors(x, ptr, link, chosen, candidate_ptr, cut.most)


def _rows(shift: Tensor, count: Tensor, total: int) -> Tensor:
    """Rows before the selection of every row after it; graphs of `count` rows move by `shift`. Shape (total,)."""
    return torch.arange(total, device=count.device) - torch.repeat_interleave(shift, count, output_size=total)


def _moved(target: Tensor, shift: Tensor, ptr: Tensor) -> Tensor:
    """Target rows after their graphs moved by `shift`, (G,); -1 stays."""
    by = torch.repeat_interleave(shift, ptr.diff(), output_size=target.shape[0])
    return torch.where(target >= 0, target + by, target)


def concatenate(spec: GraphSpec, parts: Sequence[GraphTensors]) -> GraphTensors:
    """One batch of all graphs, in order. `parts` must not be empty."""
    device = parts[0].candidate.device

    def shifts(sizes: Sequence[int], per: Sequence[int]) -> Tensor:
        """Rows of all parts before, once for each of a part's `per` values, shape (sum of per,)."""
        before = torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)
        return torch.repeat_interleave(before, torch.tensor(per, device=device), output_size=sum(per))

    def joined_ptr(ptrs: list[Tensor], sizes: list[int]) -> Tensor:
        return functional.pad(torch.cat([ptr[1:] for ptr in ptrs]) + shifts(sizes, graphs), (1, 0))

    def joined_rows(targets: list[Tensor], sizes: list[int]) -> Tensor:
        whole = torch.cat(targets)
        return torch.where(whole >= 0, whole + shifts(sizes, [len(t) for t in targets]), whole)

    graphs = [part.num_graphs for part in parts]
    sizes = {n.name: [p.x[n.name].shape[0] for p in parts] for n in spec.nodes}
    return GraphTensors(
        {n.name: torch.cat([p.x[n.name] for p in parts]) for n in spec.nodes},
        {n.name: joined_ptr([p.ptr[n.name] for p in parts], sizes[n.name]) for n in spec.nodes},
        {e.name: joined_rows([p.link[e.name] for p in parts], sizes[e.target]) for e in spec.links},
        joined_rows([p.candidate for p in parts], sizes[spec.candidate]),
        joined_ptr([p.candidate_ptr for p in parts], [p.candidate.shape[0] for p in parts]),
    )
