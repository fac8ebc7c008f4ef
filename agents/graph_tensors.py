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

BLOCK_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Cells of a graph in the dense blocks of a minibatch; larger graphs share one more block."""

LEAST_CELLS = 2048
"""Cells that make a block worth its own operations."""


class Most(NamedTuple):
    """Sizes that shape the dense parts of a batch's work.

    Attributes:
        candidates: of the graph with most of them.
        blocks: (graphs, cells), cells ascending: graphs whose nodes of the candidates' type and one more, the context,
            fit into so many cells, but not into those of the block before.
    """

    candidates: int
    blocks: tuple[tuple[int, int], ...]


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
            return Most(0, ((0, 1),))
        return Most(int(self.candidate_ptr.diff().max()), ((self.num_graphs, 1 + int(self.ptr[node].diff().max())),))

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
    names = [n.name for n in spec.nodes]
    cells = 1 + counts[names.index(spec.candidate)]
    limits = torch.tensor(BLOCK_SIZES, device=order.device)
    block = torch.zeros(len(limits) + 1, len(order), dtype=counts.dtype, device=order.device)
    block.scatter_(0, torch.bucketize(cells, limits)[None], 1)
    added, compared = torch.cat((counts, block)), torch.stack((counts[-1], cells))
    part = torch.repeat_interleave(
        torch.arange(len(sizes), device=order.device), torch.tensor(sizes, device=order.device), output_size=len(order)
    )
    totals = added.new_zeros(len(added), len(sizes)).scatter_add(1, part.expand_as(added), added)
    largest = added.new_zeros(2, len(sizes)).scatter_reduce(1, part.expand_as(compared), compared, "amax")
    return [
        Cut(
            dict(zip(names, found, strict=False)),
            found[len(names)],
            Most(candidates, _blocks(found[len(names) + 1 :], most_cells)),
        )
        for *found, candidates, most_cells in torch.cat((totals, largest)).T.tolist()
    ]


def _blocks(graphs: Sequence[int], largest: int) -> tuple[tuple[int, int], ...]:
    """Blocks for so many graphs of each of BLOCK_SIZES and beyond; small ones go into the next larger one."""
    found, waiting, left = [], 0, sum(graphs)
    for count, size in zip(graphs, (*BLOCK_SIZES, largest), strict=True):
        waiting, left = waiting + count, left - count
        if waiting and (left == 0 or waiting * size >= LEAST_CELLS):
            found.append((waiting, min(size, largest)))
            waiting = 0
    return tuple(found) or ((0, 1),)


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
