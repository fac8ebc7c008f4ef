"""The graph encoder: any `GraphSpec`, any number of nodes, one class for all worlds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.aggr import MeanAggregation

from dispatchgym.agents.architecture import EncoderConfig, checked_path
from dispatchgym.agents.graph_tensors import GraphTensors, owner
from dispatchgym.envs.api import GraphSpec


class Blocks:
    """Where the context node and the candidate nodes of every graph sit in a dense (graphs, size) grid.

    Attention runs on the grid, everything else on the rows: padding costs only where it must.
    """

    def __init__(self, ptr: Tensor, nodes: int) -> None:
        graphs = ptr.shape[0] - 1
        count = ptr.diff()
        self.graphs = graphs
        self.size = 1 + int(count.max()) if graphs else 1
        graph = owner(ptr, nodes)
        position = torch.arange(nodes, device=ptr.device) - ptr[graph]
        self.slot = torch.cat(
            (torch.arange(graphs, device=ptr.device) * self.size, graph * self.size + 1 + position)
        )  # rows: first the context nodes, then the candidate nodes
        self.is_real = torch.arange(self.size, device=ptr.device) <= count[:, None]  # (graphs, size)

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows (R, ...) -> grid (graphs, size, ...)."""
        grid = rows.new_full((self.graphs * self.size, *rows.shape[1:]), fill)
        return grid.index_copy(0, self.slot, rows).view(self.graphs, self.size, *rows.shape[1:])

    def to_rows(self, grid: Tensor) -> Tensor:
        """The inverse."""
        return grid.reshape(self.graphs * self.size, *grid.shape[2:]).index_select(0, self.slot)


class HubExchange(nn.Module):
    """One round along the typed links: targets hear the mean of their sources, sources hear their target.

    Links are many-to-one, so the way back is a plain look-up. Links between the same two node types travel
    together. A link to nowhere (-1) reads and writes spare rows.
    """

    def __init__(self, spec: GraphSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.mean = MeanAggregation()
        pairs = sorted({(link.source, link.target) for link in spec.links})
        self.ways = [
            (source, target, [link.name for link in spec.links if (link.source, link.target) == (source, target)])
            for source, target in pairs
        ]
        self.targets = sorted({target for _, target in pairs})
        self.norm = nn.ModuleDict({n.name: nn.LayerNorm(width) for n in spec.nodes if n.name != spec.context})
        self.up = nn.ModuleList(nn.Linear(len(names) * width, width, bias=False) for _, _, names in self.ways)
        self.down = nn.ModuleList(nn.Linear(width, len(names) * width, bias=False) for _, _, names in self.ways)
        self.mix = nn.ModuleDict({name: _mlp(width, width, width) for name in self.targets})

    def forward(self, h: dict[str, Tensor], link: dict[str, Tensor]) -> dict[str, Tensor]:
        h = dict(h)
        normed = {name: norm(h[name]) for name, norm in self.norm.items()}
        heard = {name: normed[name] for name in self.targets}
        goals = []
        for (source, target, names), up in zip(self.ways, self.up, strict=True):
            sources, targets, width = h[source].shape[0], h[target].shape[0], h[source].shape[1]
            spare = _spare_rows(sources)
            nowhere = targets + torch.arange(sources, device=h[source].device) % spare
            goal = torch.stack([torch.where(link[name] < 0, nowhere, link[name]) for name in names], 1)
            goal = goal * len(names) + torch.arange(len(names), device=goal.device)  # (sources, links)
            message = normed[source][:, None].expand(-1, len(names), -1).reshape(-1, width)
            rows = (targets + spare) * len(names)
            mean = self.mean(message, goal.view(-1), dim_size=rows, dim=0).view(-1, len(names) * width)[:targets]
            heard[target] = heard[target] + up(mean)
            goals.append((goal, spare))
        for name in self.targets:
            h[name] = h[name] + self.mix[name](heard[name])
        told = dict(h)
        for (source, target, names), down, (goal_rows, spare) in zip(self.ways, self.down, goals, strict=True):
            width = h[source].shape[1]
            looked_up = functional.pad(down(h[target]), (0, 0, 0, spare)).view(-1, width)
            told[source] = told[source] + looked_up.index_select(0, goal_rows.view(-1)).view(-1, len(names), width).sum(
                1
            )
        return told


def _spare_rows(sources: int) -> int:
    """On a GPU thousands of additions to one row would queue up; in a small graph one row is enough."""
    return 256 if sources > 10_000 else 1


class BlockAttention(nn.Module):
    """Attention among a graph's context and candidate nodes; half of the heads see only rivals, context and self."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mix_norm = nn.LayerNorm(width)
        self.mix = _mlp(width, 2 * width, width)

    def forward(self, rows: Tensor, blocks: Blocks, mask: Tensor) -> Tensor:
        """Rows (R, width); mask, bool (graphs, heads, size, size), says who sees whom."""
        width = rows.shape[1]
        grid = blocks.to_grid(self.qkv(self.norm(rows)))
        split = grid.view(blocks.graphs, blocks.size, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (graphs, heads, size, width / heads) each
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        rows = rows + self.out(blocks.to_rows(seen.transpose(1, 2).flatten(2)))
        mixed: Tensor = rows + self.mix(self.mix_norm(rows))
        return mixed


class Encoder(nn.Module):
    """Node features -> node states, and one state a graph.

    Inputs are standardised by `mean` and `scale` (buffers, see `GraphActorCriticPolicy.fit_scale`) and
    compressed by sign(z) log(1 + |z|), so that shops far larger than those of the training stay in range.
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
        """States of the candidate type's nodes (nodes, width) and of the context nodes (G, width)."""
        spec = self.spec
        h = {n.name: self.embed[n.name](self._standardised(n.name, graphs.x[n.name])) for n in self.seen}
        if self.attention:
            blocks = Blocks(graphs.ptr[spec.candidate], h[spec.candidate].shape[0])
            mask = self._mask(graphs, blocks)
            for i, attention in enumerate(self.attention):
                if self.hubs:
                    h = self.hubs[i](h, graphs.link)
                rows = attention(torch.cat((h[spec.context], h[spec.candidate])), blocks, mask)
                h[spec.context], h[spec.candidate] = rows[: blocks.graphs], rows[blocks.graphs :]
        return self.final(h[spec.candidate]), self.final(h[spec.context])

    def _standardised(self, name: str, x: Tensor) -> Tensor:
        z = (x - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"scale_{name}")
        return z.sign() * z.abs().log1p()

    def _mask(self, graphs: GraphTensors, blocks: Blocks) -> Tensor:
        """Who sees whom, bool (graphs, heads, size, size); padding sees the context, so no row is empty."""
        everyone = blocks.is_real[:, None, :].expand(-1, blocks.size, -1)
        if not self.rivals:
            return everyone[:, None].expand(-1, self.config.heads, -1, -1)
        goal = torch.arange(graphs.x[self.spec.candidate].shape[0], device=blocks.slot.device)
        for name in self.rivals:
            goal = torch.where(goal >= 0, graphs.link[name][goal], -1)
        key = blocks.to_grid(torch.cat((goal.new_full((blocks.graphs,), -1), goal)), -1)
        near = (key[:, :, None] == key[:, None, :]) & (key[:, :, None] >= 0)
        near = near | torch.eye(blocks.size, dtype=torch.bool, device=near.device)
        near[:, :, 0] = True
        near[:, 0] = blocks.is_real
        half = self.config.heads // 2
        return torch.cat(
            (
                everyone[:, None].expand(-1, self.config.heads - half, -1, -1),
                near[:, None].expand(-1, half, -1, -1),
            ),
            1,
        )


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
