"""The graph encoder: any `GraphSpec`, any number of nodes, one class for all worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.utils import scatter

from dispatchgym.agents.architecture import NEVER, EncoderConfig, checked_path, ways_of
from dispatchgym.agents.graph_tensors import GraphTensors, owner
from dispatchgym.envs.api import GraphSpec


class Blocks:
    """Dense blocks of cells for the context node and the candidate nodes of every graph, graphs of like sizes together.

    Attention runs on the blocks, everything else on the rows: padding costs only where it must.

    Args:
        ptr: offsets of the candidate nodes, (G + 1,).
        nodes: ptr[-1].
        shapes: (graphs, cells of each) of every block, see `Most`.
    """

    def __init__(self, ptr: Tensor, nodes: int, shapes: Sequence[tuple[int, int]]) -> None:
        self.graphs = ptr.shape[0] - 1
        self.shapes = shapes
        self.cells = sum(graphs * size for graphs, size in shapes)
        if len(shapes) == 1:
            first = torch.arange(self.graphs, device=ptr.device) * shapes[0][1]
        else:
            sizes = torch.tensor([size for _, size in shapes], device=ptr.device)
            block = torch.bucketize(ptr.diff() + 1, sizes)
            order = block.argsort(stable=True)
            size = sizes.index_select(0, block.index_select(0, order))
            first = torch.empty_like(order).index_copy(0, order, size.cumsum(0) - size)
        # rows: first the context nodes, then the candidate nodes
        shift = (first + 1 - ptr[:-1]).index_select(0, owner(ptr, nodes))
        self.slot = torch.cat((first, torch.arange(nodes, device=ptr.device) + shift))

    def to_cells(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows (R, ...) -> (cells, ...)."""
        if rows.requires_grad and fill == 0.0:
            cells: Tensor = _Spread.apply(rows, self.slot, self.cells)  # type: ignore[no-untyped-call]
            return cells
        return rows.new_full((self.cells, *rows.shape[1:]), fill).index_copy(0, self.slot, rows)

    def to_rows(self, cells: Tensor) -> Tensor:
        """The inverse."""
        if cells.requires_grad:
            rows: Tensor = _Collect.apply(cells, self.slot)  # type: ignore[no-untyped-call]
            return rows
        return cells.index_select(0, self.slot)

    def split(self, cells: Tensor) -> list[Tensor]:
        """(cells, ...) -> (graphs, size, ...) of every block."""
        parts = torch.split(cells, [graphs * size for graphs, size in self.shapes])
        return [part.view(*shape, *cells.shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)]


def _spread(rows: Tensor, slot: Tensor, cells: int) -> Tensor:
    return rows.new_zeros(cells, *rows.shape[1:]).index_copy_(0, slot, rows)


class _Spread(torch.autograd.Function):
    """Rows to slots of their own, zeros elsewhere; no copy of the zeros, and the way back is a look-up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slot: Tensor, cells: int) -> Tensor:
        ctx.save_for_backward(slot)
        return _spread(rows, slot, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return grad.index_select(0, slot), None, None


class _Collect(torch.autograd.Function):
    """The inverse. No slot is asked for twice, so nothing has to be added up on the way back."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.cells = cells.shape[0]
        return cells.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return _spread(grad, slot, ctx.cells), None


class RowNorm(nn.LayerNorm):
    """Layer normalisation that stays in the type of an autocast, where PyTorch's would go back to float32.

    Mean and variance are accumulated in float32 either way.
    """

    def forward(self, rows: Tensor) -> Tensor:
        kind = rows.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(rows)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return functional.layer_norm(rows.to(dtype), self.normalized_shape, weight, bias, self.eps)


class Route(NamedTuple):
    """The links of a way (source, target, L links), ready for use: the same in every round of a batch.

    A target has L rows in the table of messages, and behind the targets there are spare ones for links to nowhere.

    Attributes:
        row: row of the table for each of a source's L messages, (sources x L,).
        target: the row's target, or one of the spares, (sources x L,).
        weight: 1 / messages in a row of the table, (rows, 1).
        spare: spare targets.
        is_sparse: there are fewer sources than targets, so that their messages are the cheaper side to work at.
    """

    row: Tensor
    target: Tensor
    weight: Tensor
    spare: int
    is_sparse: bool


class HubExchange(nn.Module):
    """One round along the typed links: targets hear the mean of their sources, sources hear their target.

    Links are many-to-one, so the way back is a plain look-up. Links between the same two node types travel
    together. A link to nowhere (-1) reads zeros and writes to spare rows.
    """

    def __init__(self, spec: GraphSpec, width: int) -> None:
        super().__init__()
        self.width = width
        self.ways = ways_of(spec)
        self.targets = sorted({target for _, target, _ in self.ways})
        self.norm = nn.ModuleDict({n.name: RowNorm(width) for n in spec.nodes if n.name != spec.context})
        self.up = nn.ModuleList(nn.Linear(len(names) * width, width, bias=False) for _, _, names in self.ways)
        self.down = nn.ModuleList(nn.Linear(width, len(names) * width, bias=False) for _, _, names in self.ways)
        self.mix = nn.ModuleDict({name: _mlp(width, width, width) for name in self.targets})

    def forward(self, h: dict[str, Tensor], routes: list[Route], only: str | None = None) -> dict[str, Tensor]:
        """New states of all nodes, or of type `only`: then nothing is worked out that those do not hear."""
        normed = {name: norm(h[name]) for name, norm in self.norm.items()}
        wanted = [way for way in zip(self.ways, self.down, routes, strict=True) if only in (None, way[0][0])]
        whole = {t for (_, t, _), _, route in wanted if only is None or not route.is_sparse} | {only}
        after = dict(h)
        for name in self.targets:
            if only is None or name in whole:
                after[name] = h[name] + self.mix[name](self._heard(name, normed, routes))
        told = dict(after)
        for (source, target, names), down, route in wanted:
            if route.is_sparse:
                if target in whole:
                    there = functional.pad(after[target], (0, 0, 0, route.spare)).index_select(0, route.target)
                else:
                    there = self._looked_up(target, h, normed, routes, route)
                weight = _weight(down).view(len(names), self.width, self.width).transpose(0, 1).flatten(1)
                answer = functional.linear(there.view(-1, len(names) * self.width), weight)
            else:
                table = functional.pad(down(after[target]), (0, 0, 0, route.spare)).view(-1, self.width)
                answer = table.index_select(0, route.row).view(-1, len(names), self.width).sum(1)
            told[source] = told[source] + answer
        return told

    def _heard(
        self, target: str, normed: Mapping[str, Tensor], routes: list[Route], rows: Tensor | None = None
    ) -> Tensor:
        """What the target nodes, all or those in `rows`, hear in this round, themselves included."""
        heard = normed[target] if rows is None else normed[target].index_select(0, rows)
        count = normed[target].shape[0]
        for (source, goal, names), up, route in zip(self.ways, self.up, routes, strict=True):
            if goal != target:
                continue
            if route.is_sparse:
                weight = _weight(up).view(self.width, len(names), self.width).transpose(0, 1).flatten(0, 1)
                message = functional.linear(normed[source], weight).view(-1, self.width)
                message = message * route.weight.index_select(0, route.row)
                total = scatter(message, route.target, dim_size=count + route.spare)[:count]
                heard = heard + (total if rows is None else total.index_select(0, rows))
            else:
                message = normed[source].float()[:, None].expand(-1, len(names), -1).reshape(-1, self.width)
                total = scatter(message, route.row, dim_size=route.weight.shape[0]) * route.weight
                mean = total.view(-1, len(names) * self.width)[:count]
                heard = heard + up(mean if rows is None else mean.index_select(0, rows))
        return heard

    def _looked_up(
        self, target: str, h: Mapping[str, Tensor], normed: Mapping[str, Tensor], routes: list[Route], route: Route
    ) -> Tensor:
        """States of the target nodes that a sparse way looks up, zeros for links to nowhere, (sources x L, width)."""
        is_there = route.target < h[target].shape[0]
        rows = torch.where(is_there, route.target, 0)
        mixed: Tensor = self.mix[target](self._heard(target, normed, routes, rows))
        return (h[target].index_select(0, rows) + mixed) * is_there[:, None]


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight


def routes(spec: GraphSpec, graphs: GraphTensors) -> list[Route]:
    """A `Route` for each of `ways_of`."""
    found = []
    for source, target, names in ways_of(spec):
        sources, targets = graphs.x[source].shape[0], graphs.x[target].shape[0]
        spare = _spare_rows(sources)
        nowhere = targets + torch.arange(sources, device=graphs.candidate.device) % spare
        goal = torch.stack([torch.where(graphs.link[name] < 0, nowhere, graphs.link[name]) for name in names], 1)
        row = (goal * len(names) + torch.arange(len(names), device=goal.device)).view(-1)
        one = graphs.x[target].new_ones(1).expand(row.shape[0])
        messages = scatter(one, row, dim_size=(targets + spare) * len(names))
        weight = messages.clamp(min=1).reciprocal()[:, None]
        found.append(Route(row, goal.view(-1), weight, spare, sources < targets))
    return found


def _spare_rows(sources: int) -> int:
    """On a GPU thousands of additions to one row would queue up; in a small graph one row is enough."""
    return 256 if sources > 10_000 else 1


class BlockAttention(nn.Module):
    """Attention among a graph's context and candidate nodes; half of the heads see only rivals, context and self."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RowNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mix_norm = RowNorm(width)
        self.mix = _mlp(width, 2 * width, width)

    def forward(self, rows: Tensor, blocks: Blocks, bias: list[Tensor], asked: Tensor | None = None) -> Tensor:
        """New states of all rows (R, width), or of those numbered `asked`; see `Encoder._bias` for `bias`."""
        parts = []
        for cells, hidden in zip(blocks.split(blocks.to_cells(self.qkv(self.norm(rows)))), bias, strict=True):
            q, k, v = cells.view(*cells.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            parts.append(_attend(q, k, v, hidden).transpose(1, 2).flatten(2).flatten(0, 1))
        seen = torch.cat(parts) if len(parts) > 1 else parts[0]
        if asked is None:
            rows = rows + self.out(blocks.to_rows(seen))
        else:
            slot = blocks.slot.index_select(0, asked)
            rows = rows.index_select(0, asked) + self.out(seen.index_select(0, slot))
        mixed: Tensor = rows + self.mix(self.mix_norm(rows))
        return mixed


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v, for q, k, v of shape (graphs, heads, size, d) and bias (.., size, size).

    Written out: fused kernels are made for long sequences, and these are as long as a shop has jobs.
    """
    graphs, heads, size, d = q.shape
    with torch.autocast(q.device.type, enabled=False):  # which would go to float32 and back around the softmax
        flat = [part.reshape(graphs * heads, size, d) for part in (q, k, v)]
        scores = torch.bmm(flat[0] * d**-0.5, flat[1].transpose(1, 2)).view(graphs, heads, size, size)
        weights = (scores + bias).softmax(-1).view(graphs * heads, size, size)
        return torch.bmm(weights, flat[2]).view(graphs, heads, size, d)


class Encoder(nn.Module):
    """Node features -> node states, and one state a graph.

    Inputs are standardised by `mean` and `scale` (buffers, see `GraphActorCriticPolicy.fit_scale`) and
    compressed by sign(z) log(1 + |z|), so that shops far larger than those of the training stay in range.
    In an autocast products and what they read are of its type; states, sums of messages and results are float32.
    """

    def __init__(self, spec: GraphSpec, config: EncoderConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.rivals = checked_path(spec, config.rivals)
        width = config.width
        layers = config.layers if config.message_passing else 0
        with_hubs = layers if config.hubs and spec.links else 0
        # without hubs only what is scored, and the context, is ever looked at
        self.seen = [n for n in spec.nodes if with_hubs or n.name in (spec.candidate, spec.context)]
        self.embed = nn.ModuleDict({n.name: _mlp(len(n.features), width, width) for n in self.seen})
        for node in self.seen:
            self.register_buffer(f"mean_{node.name}", torch.zeros(len(node.features)))
            self.register_buffer(f"scale_{node.name}", torch.ones(len(node.features)))
        self.hubs = nn.ModuleList(HubExchange(spec, width) for _ in range(with_hubs))
        self.attention = nn.ModuleList(BlockAttention(width, config.heads) for _ in range(layers))
        self.final = nn.LayerNorm(width)

    def forward(self, graphs: GraphTensors) -> tuple[Tensor, Tensor]:
        """States of the candidates' nodes (C, width), of the first node for WAIT, and of the contexts (G, width)."""
        spec = self.spec
        h = {n.name: self.embed[n.name](self._standardised(n.name, graphs.x[n.name])).float() for n in self.seen}
        first = graphs.ptr[spec.candidate].index_select(0, owner(graphs.candidate_ptr, graphs.candidate.shape[0]))
        row = torch.where(graphs.candidate < 0, first, graphs.candidate)
        if not self.attention:
            return self.final(h[spec.candidate].index_select(0, row)), self.final(h[spec.context])
        ptr = graphs.ptr[spec.candidate]
        blocks = Blocks(ptr, h[spec.candidate].shape[0], graphs.most_of(spec.candidate).blocks)
        kind = row.device.type
        in_autocast = torch.is_autocast_enabled(kind)
        bias = self._bias(graphs, blocks, torch.get_autocast_dtype(kind) if in_autocast else torch.float32)
        links = routes(spec, graphs) if self.hubs else []
        # the last round is worked out only where somebody looks: at the context nodes and the candidates
        contexts = torch.arange(blocks.graphs, device=row.device)
        asked = torch.cat((contexts, blocks.graphs + row))
        for i, attention in enumerate(self.attention):
            is_last = i == len(self.attention) - 1
            if self.hubs:
                h = self.hubs[i](h, links, spec.candidate if is_last else None)
            rows = attention(torch.cat((h[spec.context], h[spec.candidate])), blocks, bias, asked if is_last else None)
            h[spec.context], h[spec.candidate] = rows[: blocks.graphs], rows[blocks.graphs :]
        return self.final(h[spec.candidate]), self.final(h[spec.context])

    def _standardised(self, name: str, x: Tensor) -> Tensor:
        z = (x - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"scale_{name}")
        return z.sign() * z.abs().log1p()

    def _bias(self, graphs: GraphTensors, blocks: Blocks, dtype: torch.dtype) -> list[Tensor]:
        """Added to the scores of every block: 0 for who is seen, a huge negative number for the rest.

        Shapes (graphs, heads or 1, size or 1, size). All see the context: no row is empty.
        """
        nobody, everyone, by_itself = -3, -2, -1
        goal = torch.arange(graphs.x[self.spec.candidate].shape[0], device=blocks.slot.device)
        for name in self.rivals:
            goal = torch.where(goal >= 0, graphs.link[name][goal], by_itself)
        keys = blocks.to_cells(torch.cat((goal.new_full((blocks.graphs,), everyone), goal)), nobody)
        found = []
        for key in blocks.split(keys):
            is_real = key != nobody
            hidden = torch.zeros_like(key, dtype=dtype).masked_fill(~is_real, NEVER)[:, None, None]
            if not self.rivals:
                found.append(hidden)
                continue
            near = (key[:, :, None] == key[:, None, :]) & (key[:, :, None] >= 0)
            near = near | torch.eye(key.shape[1], dtype=torch.bool, device=key.device)
            near[:, :, 0] = True
            near[:, 0] = is_real
            narrow = torch.zeros_like(near, dtype=dtype).masked_fill(~near, NEVER)[:, None]
            half = self.config.heads // 2
            wide = hidden.expand(-1, self.config.heads - half, key.shape[1], -1)
            found.append(torch.cat((wide, narrow.expand(-1, half, -1, -1)), 1))
        return found


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
