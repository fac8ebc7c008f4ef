"""`policy.onnx`: the network as one ONNX graph of one decision, for any number of nodes and candidates.

The file holds no weights: its initialisers are external data inside `weights.safetensors`, which lies beside it,
so that a bundle carries every number once.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dispatchgym.agents.architecture import CLOSED, NEVER, STARTING_RULES, WAIT_SCORES, PolicyConfig, column_of, ways_of
from dispatchgym.agents.runtime import inputs_of
from dispatchgym.agents.safe_tensors import Placed
from dispatchgym.envs.api import GraphSpec, UsageError

OPSET = 20
OUTPUT = "logits"
_EXTERNAL = 1  # TensorProto.DataLocation
_ONNX_TYPE = {"F32": 1, "F16": 10}  # TensorProto.DataType


class _Dense:
    """`GraphNetwork` for one graph, written densely over plain tensors; the last layer for the candidates alone."""

    def __init__(self, spec: GraphSpec, config: PolicyConfig, weights: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.config = config
        self.weights = weights
        self.ways = ways_of(spec)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Shape (C,)."""
        spec, encoder = self.spec, self.config.encoder
        seen = [name.removeprefix("x/") for name in inputs if name.startswith("x/")]
        h = {name: self._embedded(name, inputs[f"x/{name}"]) for name in seen}
        row = inputs["candidate"].clamp(min=0)
        if not encoder.message_passing:
            chosen = h[spec.candidate].index_select(0, row)
            return self._scored(
                inputs, self._norm("encoder.final", chosen), self._norm("encoder.final", h[spec.context])
            )
        bias = self._bias(inputs) if encoder.rivals and encoder.heads > 1 else None
        has_hubs = encoder.hubs and bool(spec.links)
        links = [self._links(inputs, *way) for way in self.ways] if has_hubs else []
        for i in range(encoder.layers):
            if has_hubs:
                h = self._exchange(f"encoder.hubs.{i}", h, links)
            rows = torch.cat((h[spec.context], h[spec.candidate]))
            asking = torch.cat((row.new_zeros(1), row + 1)) if i == encoder.layers - 1 else None
            rows = self._attend(f"encoder.attention.{i}", rows, bias, asking)
            h = {**h, spec.context: rows[:1], spec.candidate: rows[1:]}
        rows = self._norm("encoder.final", rows)
        return self._scored(inputs, rows[1:], rows[:1])

    def _weight(self, key: str) -> Tensor:
        return self.weights[key].float()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self._weight(f"{name}.bias") if f"{name}.bias" in self.weights else None
        return functional.linear(x, self._weight(f"{name}.weight"), bias)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, (self.config.encoder.width,), self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        )

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.2", functional.gelu(self._linear(f"{name}.0", x)))

    def _embedded(self, name: str, x: Tensor) -> Tensor:
        z = (x - self._weight(f"encoder.mean_{name}")) / self._weight(f"encoder.scale_{name}")
        return self._mlp(f"encoder.embed.{name}", z.sign() * z.abs().log1p())

    def _links(
        self, inputs: Mapping[str, Tensor], source: str, target: str, names: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """Who hears whom, (targets x links, sources), a mean in every row; who points where, its other way round."""
        sources, targets = inputs[f"x/{source}"].shape[0], inputs[f"x/{target}"].shape[0]
        at = torch.arange(targets, device=inputs["candidate"].device)
        goal = torch.stack([inputs[f"link/{name}"] for name in names], 1)
        points = (goal[:, None, :] == at[None, :, None]).float().reshape(sources, targets * len(names))
        return (points / points.sum(0).clamp(min=1.0)).t(), points

    def _exchange(self, name: str, h: Mapping[str, Tensor], links: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        width = self.config.encoder.width
        others = [n.name for n in self.spec.nodes if n.name != self.spec.context]
        normed = {node: self._norm(f"{name}.norm.{node}", h[node]) for node in others}
        heard = {target: normed[target] for _, target, _ in self.ways}
        for k, ((source, target, names), (hears, _)) in enumerate(zip(self.ways, links, strict=True)):
            mean = (hears @ normed[source]).reshape(-1, len(names) * width)
            heard[target] = heard[target] + self._linear(f"{name}.up.{k}", mean)
        h = {**h, **{target: h[target] + self._mlp(f"{name}.mix.{target}", x) for target, x in heard.items()}}
        told = dict(h)
        for k, ((source, target, _), (_, points)) in enumerate(zip(self.ways, links, strict=True)):
            told[source] = told[source] + points @ self._linear(f"{name}.down.{k}", h[target]).reshape(-1, width)
        return told

    def _bias(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What is added to the scores, (heads, size, size): half of the heads see only rivals, context and self."""
        nodes, heads = inputs[f"x/{self.spec.candidate}"].shape[0], self.config.encoder.heads
        own = torch.arange(nodes, device=inputs["candidate"].device)
        goal = own
        for name in self.config.encoder.rivals:
            goal = torch.where(goal >= 0, inputs[f"link/{name}"][goal], -1)
        key = torch.where(goal >= 0, goal, -2 - own)  # whoever leads nowhere has a key of its own
        near = torch.where(key[:, None] == key[None, :], 0.0, NEVER)
        near = functional.pad(near, (1, 0, 1, 0))  # the context node, first, sees and is seen
        return functional.pad(near.expand(heads // 2, -1, -1), (0, 0, 0, 0, heads - heads // 2, 0))

    def _attend(self, name: str, rows: Tensor, bias: Tensor | None, asking: Tensor | None) -> Tensor:
        """Rows after one layer of attention: all of them, or those at `asking`."""
        width, heads = self.config.encoder.width, self.config.encoder.heads
        part = width // heads
        split = self._linear(f"{name}.qkv", self._norm(f"{name}.norm", rows))
        query = split[:, :width]
        if asking is not None:
            rows, query = rows.index_select(0, asking), query.index_select(0, asking)
            bias = None if bias is None else bias.index_select(1, asking)
        q = query.reshape(-1, heads, part).transpose(0, 1)
        k = split[:, width : 2 * width].reshape(-1, heads, part).permute(1, 2, 0)
        v = split[:, 2 * width :].reshape(-1, heads, part).transpose(0, 1)
        score = (q @ k) * (1.0 / math.sqrt(part))
        if bias is not None:
            score = score + bias
        seen = (score.softmax(-1) @ v).transpose(0, 1).reshape(-1, width)
        rows = rows + self._linear(f"{name}.out", seen)
        return rows + self._mlp(f"{name}.mix", self._norm(f"{name}.mix_norm", rows))

    def _scored(self, inputs: Mapping[str, Tensor], nodes: Tensor, context: Tensor) -> Tensor:
        spec, config = self.spec, self.config
        is_wait = inputs["candidate"] < 0
        row = inputs["candidate"].clamp(min=0)
        hidden = functional.gelu(self._linear("score_node", nodes) + self._linear("score_context", context))
        logit = self._linear("score", hidden).squeeze(-1)
        x, about = inputs[f"x/{spec.candidate}"], inputs[f"x/{spec.context}"][0]
        if "wait.0.weight" in self.weights:
            wait = self._mlp("wait", context).reshape(1)
        else:
            wait = logit.new_full((1,), config.wait)
        if config.rule is not None:
            name, sign = STARTING_RULES[config.rule]
            column = [f.name for f in spec.node(spec.candidate).features].index(name)
            weight = self._weight("rule_scale") / self._weight(f"encoder.scale_{spec.candidate}")[column]
            logit = logit + sign * weight * x[:, column].index_select(0, row)
            if config.rule in WAIT_SCORES:
                wait = wait + weight * about[column_of(spec, spec.context, WAIT_SCORES[config.rule])]
        if config.cap is not None:
            machines = torch.expm1(about[column_of(spec, spec.context, "log_machines")]).round()
            limit = (config.cap * machines + 0.5).floor().clamp(min=1.0)
            is_full = (about[column_of(spec, spec.context, "in_shop")] * machines).round() >= limit
            is_new = x[:, column_of(spec, spec.candidate, "in_shop")].index_select(0, row) < 0.5
            outside = is_new & is_full & ~is_wait
            has_inside, has_wait = (~is_wait & ~outside).any(), is_wait.any()
            logit = logit - CLOSED * (outside & (has_inside | has_wait)).float()
            wait = wait + CLOSED * (has_wait & ~has_inside).float()
        logit = torch.where(is_wait, NEVER, logit)
        return torch.where(is_wait, logit.max() + wait, logit)


class OneDecision(nn.Module):
    """The module that is exported. Weights are inputs: an exporter would fold them into constants of its own."""

    def __init__(self, spec: GraphSpec, config: PolicyConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    def forward(self, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        return _Dense(self.spec, self.config, weights).logits(inputs)


def require_exporter() -> None:
    """Raise UsageError unless the packages that write ONNX are installed."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UsageError(
            "writing policy.onnx needs the packages onnx and onnxscript: pip install 'dispatchgym[onnx]'; "
            "or leave the file out with --no-onnx"
        )


def onnx_bytes(
    spec: GraphSpec,
    config: PolicyConfig,
    weights: Mapping[str, Tensor],
    example: Mapping[str, Tensor],
    placed: Mapping[str, Placed],
    file: str,
) -> bytes:
    """The ONNX model; inputs as `inputs_of` names them, output "logits".

    Args:
        weights: name -> numbers as they are stored.
        example: inputs of one decision with at least two nodes of every kind and two candidates.
        placed: where each weight lies in `file`.
        file: name of the file of weights, which must lie beside the model.

    Raises:
        UsageError: the packages that it takes are not installed.
    """
    require_exporter()
    names = inputs_of(spec, config)
    shapes = _dynamic_shapes(spec, names)
    inputs = {name: example[name] for name in names}
    stored = dict(weights)
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                OneDecision(spec, config).eval(),
                (inputs, stored, {}),  # without the last one the weights would be taken for keywords
                dynamo=True,
                dynamic_shapes=(shapes, {key: {} for key in stored}),
                input_names=[*names, *stored],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        noisy.setLevel(level)
    assert program is not None
    model = program.model_proto
    _make_external(model, placed, file)
    _strip(model)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _dynamic_shapes(spec: GraphSpec, names: list[str]) -> dict[str, Any]:
    rows = {n.name: torch.export.Dim(n.name) for n in spec.nodes}
    source = {edge.name: edge.source for edge in spec.links}
    shapes: dict[str, Any] = {}
    for name in names:
        kind, _, which = name.partition("/")
        node = which if kind == "x" else source.get(which, "")
        shapes[name] = {} if node == spec.context else {0: rows.get(node) or torch.export.Dim("candidates")}
    return shapes


def _make_external(model: Any, placed: Mapping[str, Placed], file: str) -> None:
    """Turn the inputs that are weights into initialisers whose data lies in `file`."""
    graph = model.graph
    kept = [value for value in graph.input if value.name not in placed]
    del graph.input[:]
    graph.input.extend(kept)
    used = {name for node in graph.node for name in node.input}
    for name, place in placed.items():
        if name in used:
            tensor = graph.initializer.add()
            tensor.name, tensor.data_type, tensor.data_location = name, _ONNX_TYPE[place.dtype], _EXTERNAL
            tensor.dims.extend(place.shape)
            for key, value in (("location", file), ("offset", str(place.begin)), ("length", str(place.size))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


def _strip(model: Any) -> None:
    """Remove what only debugging reads: names of nodes, source lines, shapes in between."""
    for message in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    for node in model.graph.node:
        node.ClearField("name")
    model.graph.ClearField("value_info")
