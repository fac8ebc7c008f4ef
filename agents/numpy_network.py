"""The policy network in NumPy alone: what a plug-in runs that cannot afford torch, and the judge of the other runtimes.

One graph at a time and dense throughout, which is the fastest way for the few dozen nodes of a decision. Weights are
prepared once: layer norms are folded into the products behind them, matrices lie as the products read them, and
the last layer is computed for the candidates alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.architecture import CLOSED, NEVER, STARTING_RULES, WAIT_SCORES, PolicyConfig, column_of, ways_of
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import GraphSpec

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_EPS = np.float32(1e-5)  # of torch's layer norm
_DENSE = 1 << 20
"""Most entries of a link matrix; beyond, messages are added up link by link."""

# erfc(z) = t (a1 + t (a2 + ...)) exp(-z^2), t = 1 / (1 + p z): Abramowitz and Stegun 7.1.26, error below 1.5e-7.
# Here z = |x| / sqrt(2), and the a's are halved: GELU(x) = max(x, 0) - |x| erfc(z) / 2.
_P = np.float32(0.3275911 / math.sqrt(2.0))
_A = tuple(np.float32(a / 2) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))


class _Linear(NamedTuple):
    """x @ weight + bias, weight of shape (inputs, outputs)."""

    weight: F32
    bias: F32

    def __call__(self, x: F32) -> F32:
        y: F32 = x @ self.weight
        y += self.bias
        return y


class _Mlp(NamedTuple):
    first: _Linear
    second: _Linear

    def __call__(self, x: F32) -> F32:
        return self.second(_gelu(self.first(x)))


class _Way(NamedTuple):
    """Links between two node types: weights of the messages there (up) and back (down)."""

    source: str
    target: str
    names: tuple[str, ...]
    up: _Linear
    down: F32


class _Hubs(NamedTuple):
    norm: dict[str, tuple[F32, F32]]
    ways: list[_Way]
    mix: dict[str, _Mlp]


class _Attention(NamedTuple):
    qkv: _Linear
    out: _Linear
    mix: _Mlp


class Stacked(NamedTuple):
    """Weights of a network without links, layers stacked, matrices of shape (outputs, inputs); see `NumpyNetwork`."""

    heads: int
    rule: F32  # (features of a candidate's node,) what these add by themselves
    node_mean: F32
    node_inverse: F32
    node_in: F32  # (width, features)
    node_in_bias: F32
    node_out: F32  # (width, width)
    node_out_bias: F32
    context_mean: F32
    context_inverse: F32
    context_in: F32
    context_in_bias: F32
    context_out: F32
    context_out_bias: F32
    qkv: F32  # (layers, 3 x width, width)
    qkv_bias: F32
    out: F32  # (layers, width, width)
    out_bias: F32
    mix_in: F32  # (layers, 2 x width, width)
    mix_in_bias: F32
    mix_out: F32  # (layers, width, 2 x width)
    mix_out_bias: F32
    score_node: F32  # (width, width)
    score_context: F32
    score_bias: F32
    score: F32  # (width,)


class NumpyNetwork(Runtime):
    """Logits by NumPy.

    Args:
        spec: the graphs to expect.
        config: the architecture.
        weights: name -> numbers, as `GraphNetwork.state_dict` has them; without "wait." for shops that never wait.
    """

    name = "numpy"

    def __init__(self, spec: GraphSpec, config: PolicyConfig, weights: Mapping[str, npt.NDArray[np.floating]]) -> None:
        super().__init__(spec, config)
        encoder = config.encoder
        wide = {key: np.asarray(value, np.float32) for key, value in weights.items()}
        layers = encoder.layers if encoder.message_passing else 0
        self._half = encoder.heads // 2
        self._seen = [name.removeprefix("x/") for name in self.inputs if name.startswith("x/")]
        self._scale = {n: (wide[f"encoder.mean_{n}"], 1 / wide[f"encoder.scale_{n}"]) for n in self._seen}
        self._embed = {n: _mlp(wide, f"encoder.embed.{n}") for n in self._seen}
        self._hubs = [
            _hubs(wide, f"encoder.hubs.{i}", spec) for i in range(layers if encoder.hubs and spec.links else 0)
        ]
        self._attention = [_attention(wide, f"encoder.attention.{i}", encoder.heads) for i in range(layers)]
        final = wide["encoder.final.weight"], wide["encoder.final.bias"]
        self._score_node = _after_norm(_linear(wide, "score_node"), *final)
        self._score_context = _after_norm(_linear(wide, "score_context"), *final)
        self._score = wide["score.weight"][0]
        self._wait = _mlp(wide, "wait") if "wait.0.weight" in wide else None
        if self._wait is not None:
            self._wait = self._wait._replace(first=_after_norm(self._wait.first, *final))
        self._rule_column = self._wait_column = -1
        if config.rule is not None:
            column, sign = STARTING_RULES[config.rule]
            self._rule_column = [f.name for f in spec.node(spec.candidate).features].index(column)
            scale = wide[f"encoder.scale_{spec.candidate}"][self._rule_column]
            self._rule_weight = wide["rule_scale"] * np.float32(sign) / scale
            if config.rule in WAIT_SCORES:
                self._wait_column = column_of(spec, spec.context, WAIT_SCORES[config.rule])
                self._wait_weight = wide["rule_scale"] / scale
        if config.cap is not None:
            self._inside = column_of(spec, spec.candidate, "in_shop")
            self._crowd = column_of(spec, spec.context, "in_shop")
            self._log_machines = column_of(spec, spec.context, "log_machines")

    def stacked(self) -> Stacked | None:
        """The weights, if candidates meet by attention alone: no links, no cap, no score of WAIT by itself."""
        spec, encoder = self.spec, self.config.encoder
        simple = not self._hubs and not encoder.rivals and self.config.cap is None and self._wait_column < 0
        if not simple or not self._attention:
            return None
        parts: list[F32] = []
        for name in (spec.candidate, spec.context):
            mean, inverse = self._scale[name]
            parts += [mean, np.asarray(inverse, np.float32)]
            parts += [*_turned(self._embed[name].first), *_turned(self._embed[name].second)]
        layers = [(a.qkv, a.out, a.mix.first, a.mix.second) for a in self._attention]
        for linears in zip(*layers, strict=True):
            parts += [np.stack(each) for each in zip(*map(_turned, linears), strict=True)]
        node, context = self._score_node, self._score_context
        parts += [_turned(node)[0], _turned(context)[0], node.bias + context.bias, self._score]
        rule = np.zeros(len(self._scale[spec.candidate][0]), np.float32)
        if self._rule_column >= 0:
            rule[self._rule_column] = self._rule_weight
        return Stacked(encoder.heads, rule, *parts)

    def one(self, graph: OneGraph) -> F32:
        spec = self.spec
        candidate, context = spec.candidate, spec.context
        row = np.maximum(graph.candidate, 0)
        h = {name: self._embed[name](self._standardised(name, graph.x[name])) for name in self._seen}
        rows = np.concatenate((h[context], h[candidate]))
        if self._attention:
            near = self._near(graph) if self.config.encoder.rivals else None
            links = [_Links(graph, way) for way in self._hubs[0].ways] if self._hubs else []
            last = len(self._attention) - 1
            for i, attention in enumerate(self._attention):
                if self._hubs:
                    h[context], h[candidate] = rows[:1], rows[1:]
                    self._exchange(self._hubs[i], h, links)
                    rows = np.concatenate((h[context], h[candidate]))
                rows = self._attend(attention, rows, near, np.append(0, row + 1) if i == last else None)
        else:
            rows = np.concatenate((h[context], h[candidate][row]))
        return self._logits(graph, _normed(rows), row)

    def _standardised(self, name: str, x: F32) -> F32:
        mean, inverse = self._scale[name]
        z = x - mean
        z *= inverse
        compressed: F32 = np.copysign(np.log1p(np.abs(z)), z)
        return compressed

    def _near(self, graph: OneGraph) -> F32:
        """What is added to the scores of the heads that see only rivals, (size, size); context first."""
        goal = np.arange(len(graph.x[self.spec.candidate]))
        for name in self.config.encoder.rivals:
            goal = np.where(goal >= 0, graph.link[name][goal], -1) if len(graph.link[name]) else np.full_like(goal, -1)
        size = len(goal) + 1
        near = np.full((size, size), NEVER, np.float32)
        near[1:, 1:][(goal[:, None] == goal) & (goal >= 0)] = 0.0
        near.flat[:: size + 1] = 0.0
        near[0] = near[:, 0] = 0.0
        return near

    def _exchange(self, hubs: _Hubs, h: dict[str, F32], links: list[_Links]) -> None:
        normed = {name: _normed(h[name]) * gain + shift for name, (gain, shift) in hubs.norm.items()}
        heard = {name: normed[name] for name in hubs.mix}
        for way, link in zip(hubs.ways, links, strict=True):
            heard[way.target] = heard[way.target] + way.up(link.mean(normed[way.source]))
        for name, mix in hubs.mix.items():
            h[name] = h[name] + mix(heard[name])
        states = dict(h)
        for way, link in zip(hubs.ways, links, strict=True):
            h[way.source] = h[way.source] + link.look_up(states[way.target] @ way.down)

    def _attend(self, layer: _Attention, rows: F32, near: F32 | None, asking: I64 | None) -> F32:
        """Rows after one layer: all of them, or those at `asking`."""
        heads = self.config.encoder.heads
        size, width = rows.shape
        split = layer.qkv(_normed(rows)).reshape(size, 3, heads, width // heads)
        query = split[:, 0]
        if asking is not None:
            rows, query = rows[asking], query[asking]
            near = None if near is None else near[asking]
        score: F32 = query.transpose(1, 0, 2) @ split[:, 1].transpose(1, 2, 0)  # (heads, asking, size)
        if near is not None:
            score[heads - self._half :] += near
        score -= score.max(2, keepdims=True)
        np.exp(score, out=score)
        score /= score.sum(2, keepdims=True)
        seen = (score @ split[:, 2].transpose(1, 0, 2)).transpose(1, 0, 2).reshape(len(rows), width)
        rows = rows + layer.out(seen)
        rows += layer.mix(_normed(rows))
        return rows

    def _logits(self, graph: OneGraph, rows: F32, row: I64) -> F32:
        is_wait = graph.candidate < 0
        hidden = self._score_node(rows[1:])
        hidden += self._score_context(rows[:1])
        logit: F32 = _gelu(hidden) @ self._score
        x = graph.x[self.spec.candidate]
        if self._rule_column >= 0:
            logit += self._rule_weight * x[row, self._rule_column]
        has_wait = bool(is_wait.any())
        closed = False
        if self.config.cap is not None:
            outside = self._outside(graph, row) & ~is_wait
            has_inside = bool((~is_wait & ~outside).any())
            closed = has_wait and not has_inside
            if has_inside or has_wait:
                logit[outside] -= np.float32(CLOSED)
        if has_wait:
            wait = self.config.wait if self._wait is None else float(self._wait(rows[:1])[0, 0])
            if self._wait_column >= 0:
                wait += float(self._wait_weight * graph.x[self.spec.context][0, self._wait_column])
            best = float(logit[~is_wait].max(initial=NEVER))
            logit[is_wait] = np.float32(best + wait + (CLOSED if closed else 0.0))
        return logit

    def _outside(self, graph: OneGraph, row: I64) -> npt.NDArray[np.bool_]:
        """Candidates that the cap keeps out: jobs outside a shop that is full."""
        assert self.config.cap is not None
        about = graph.x[self.spec.context][0]
        machines = np.rint(np.expm1(about[self._log_machines]))
        limit = max(math.floor(np.float32(self.config.cap) * machines + np.float32(0.5)), 1)
        if np.rint(about[self._crowd] * machines) < limit:
            return np.zeros(len(row), np.bool_)
        outside: npt.NDArray[np.bool_] = graph.x[self.spec.candidate][row, self._inside] < 0.5
        return outside


class _Links:
    """Who points where along one way, prepared once a graph: a matrix, or in large graphs sorted indices."""

    def __init__(self, graph: OneGraph, way: _Way) -> None:
        sources, self.targets = len(graph.x[way.source]), len(graph.x[way.target])
        self.names = len(way.names)
        goal = np.stack([graph.link[name] for name in way.names], 1)  # (sources, links)
        self.slot = np.where(goal < 0, self.targets * self.names, goal * self.names + np.arange(self.names))
        rows = self.targets * self.names
        self.matrix: F32 | None = None
        if sources * rows <= _DENSE:
            matrix = np.zeros((sources, rows + 1), np.float32)
            matrix[np.arange(sources)[:, None], self.slot] = 1.0
            self.matrix = matrix[:, :rows]
            count = self.matrix.sum(0)
        else:
            count = np.bincount(self.slot.ravel(), minlength=rows + 1)[:rows].astype(np.float32)
            self.order = np.argsort(self.slot.ravel(), kind="stable")
            self.filled = np.flatnonzero(count)
            self.begin = (np.cumsum(count) - count).astype(np.int64)[self.filled]
            self.end = int(count.sum())
        self.inverse = (1.0 / np.maximum(count, 1.0)).astype(np.float32)[:, None]

    def mean(self, source: F32) -> F32:
        """What each target hears, the mean of its sources, link beside link: (targets, links x width)."""
        if self.matrix is not None:
            total: F32 = self.matrix.T @ source
        else:
            total = np.zeros((self.targets * self.names, source.shape[1]), np.float32)
            if len(self.filled):
                total[self.filled] = np.add.reduceat(source[self.order[: self.end] // self.names], self.begin, axis=0)
        total *= self.inverse
        return total.reshape(self.targets, self.names * source.shape[1])

    def look_up(self, told: F32) -> F32:
        """What each source reads at its targets, summed over the links: (sources, width)."""
        width = told.shape[1] // self.names
        table = told.reshape(-1, width)
        if self.matrix is not None:
            found: F32 = self.matrix @ table
            return found
        summed: F32 = np.concatenate((table, np.zeros((1, width), np.float32)))[self.slot].sum(1)
        return summed


def _gelu(x: F32) -> F32:
    z = np.abs(x)
    t = z * _P
    t += 1
    np.reciprocal(t, out=t)
    y = t * _A[0]
    for a in _A[1:]:
        y += a
        y *= t
    np.multiply(x, x, out=t)
    t *= np.float32(-0.5)
    np.exp(t, out=t)
    y *= t
    y *= z
    np.maximum(x, 0, out=z)
    z -= y
    return z


def _normed(x: F32) -> F32:
    """Rows of mean 0 and variance 1."""
    width = np.float32(x.shape[1])
    mean: F32 = np.add.reduce(x, 1, keepdims=True)
    mean /= width
    y = x - mean
    spread: F32 = np.einsum("ij,ij->i", y, y)
    spread /= width
    spread += _EPS
    np.sqrt(spread, out=spread)
    y /= spread[:, None]
    return y


def _linear(weights: Mapping[str, F32], name: str) -> _Linear:
    weight = np.ascontiguousarray(weights[f"{name}.weight"].T)
    bias = weights.get(f"{name}.bias")
    return _Linear(weight, np.zeros(weight.shape[1], np.float32) if bias is None else bias)


def _turned(linear: _Linear) -> tuple[F32, F32]:
    """Weight of shape (outputs, inputs), and bias."""
    return np.ascontiguousarray(linear.weight.T), linear.bias


def _mlp(weights: Mapping[str, F32], name: str) -> _Mlp:
    return _Mlp(_linear(weights, f"{name}.0"), _linear(weights, f"{name}.2"))


def _after_norm(linear: _Linear, gain: F32, shift: F32) -> _Linear:
    """The product behind a layer norm, with the norm's own gain and shift in it."""
    return _Linear(gain[:, None] * linear.weight, linear.bias + shift @ linear.weight)


def _attention(weights: Mapping[str, F32], name: str, heads: int) -> _Attention:
    qkv = _after_norm(_linear(weights, f"{name}.qkv"), weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
    width = qkv.weight.shape[0]
    for part in qkv:
        part[..., :width] *= np.float32(1.0 / math.sqrt(width // heads))
    mix = _mlp(weights, f"{name}.mix")
    first = _after_norm(mix.first, weights[f"{name}.mix_norm.weight"], weights[f"{name}.mix_norm.bias"])
    return _Attention(qkv, _linear(weights, f"{name}.out"), mix._replace(first=first))


def _hubs(weights: Mapping[str, F32], name: str, spec: GraphSpec) -> _Hubs:
    ways = ways_of(spec)
    return _Hubs(
        {
            n.name: (weights[f"{name}.norm.{n.name}.weight"], weights[f"{name}.norm.{n.name}.bias"])
            for n in spec.nodes
            if n.name != spec.context
        },
        [
            _Way(source, target, names, _linear(weights, f"{name}.up.{k}"), _linear(weights, f"{name}.down.{k}").weight)
            for k, (source, target, names) in enumerate(ways)
        ],
        {target: _mlp(weights, f"{name}.mix.{target}") for target in sorted({target for _, target, _ in ways})},
    )
