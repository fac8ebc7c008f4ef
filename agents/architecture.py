"""What a policy network is made of: the configurations, and facts that every runtime of it shares. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatchgym.envs.api import GraphSpec, UsageError
from dispatchgym.envs.registry import unknown_name

STARTING_RULES: Mapping[str, tuple[str, int]] = {
    "lrpt": ("work_after", 1),
    "mwkr": ("work_left", 1),
    "lwkr": ("work_left", -1),
    "mor": ("ops_left", 1),
    "lor": ("ops_left", -1),
    "spt": ("duration_0", -1),
    "lpt": ("duration_0", 1),
    "pilot": ("behind", -1),
    "merit": ("merit", 1),
}
"""Rule -> the column of the candidate's node that is its score, and the score's sign."""

WAIT_SCORES: Mapping[str, str] = {"pilot": "wait_lead"}
"""Rule -> the column of the context that says by how much WAIT scores above the best other candidate."""

CLOSED = 100.0
"""What the cap takes off a logit: exp(-100) is no probability at all."""

NEVER = -1e9
"""Logit of padding: exp() is exactly 0, and 0 x -1e9 is no NaN."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes and parts of the network.

    Args:
        width: features of a node inside.
        layers: rounds of message passing.
        heads: attention heads; half of them see only a candidate's rivals.
        hubs: exchange messages along the typed links (job and machine) in every round.
        rivals: links to follow from a candidate's node to what it competes for, such as ("next",) in the
            `jobs` graph; candidates that end at the same node are rivals. Empty: all heads see all.
        message_passing: false is the ablation: every node by itself, beside the context node.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    hubs: bool = True
    rivals: tuple[str, ...] = ("next",)
    message_passing: bool = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1 or self.heads < 1:
            raise UsageError(f"width {self.width}, layers {self.layers}, heads {self.heads}: all must be at least 1")
        if self.width % self.heads:
            raise UsageError(f"width {self.width} cannot be split into {self.heads} heads; make it a multiple")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What the logits are made of.

    Args:
        encoder: the network.
        rule: the rule that the policy is before any training, a name in STARTING_RULES; None for none.
        rule_scale: initial weight of the rule's standardised score; learned from there.
        cap: of the jobs in the shop, as a share of the machines; as with a rule's cap, at it a job that is outside
            stays there as long as there is another choice. None for no cap.
        wait: initial logit of WAIT beside the best candidate; negative, so that at first the greedy policy never waits.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    rule: str | None = "lrpt"
    rule_scale: float = 3.0
    cap: float | None = None
    wait: float = -3.0

    def __post_init__(self) -> None:
        if self.rule is not None and self.rule not in STARTING_RULES:
            raise unknown_name("starting rule", self.rule, STARTING_RULES)
        if self.cap is not None and not self.cap > 0:
            raise UsageError(f"cap is {self.cap}; it is a share of the machines and must be above 0")
        if self.wait >= 0:
            raise UsageError(f"wait is {self.wait}; it must be negative, or the policy would not start as its rule")


def checked_path(spec: GraphSpec, path: tuple[str, ...]) -> tuple[str, ...]:
    """`path`, if its links lead from the candidates' nodes on; else UsageError."""
    at = spec.candidate
    for name in path:
        found = {link.name: link.target for link in spec.links_of(at)}
        if name not in found:
            raise UsageError(
                f"rivals {path}: no link {name!r} leaves {at!r} in graph {spec.graph!r}; "
                f"there are: {', '.join(found) or 'none'}"
            )
        at = found[name]
    return path


def column_of(spec: GraphSpec, node: str, name: str) -> int:
    """Position of a feature; a cap can only count what the graph shows."""
    names = [f.name for f in spec.node(node).features]
    if name not in names:
        raise UsageError(f"a cap needs column {name!r} of {node!r}, which graph {spec.graph!r} has not")
    return names.index(name)


def weight_shapes(spec: GraphSpec, config: PolicyConfig, *, has_wait: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every number that deciding takes: the network's state without what only training needs.

    Args:
        has_wait: whether WAIT can ever be a candidate; else the head that scores it is left out.
    """
    encoder = config.encoder
    width = encoder.width
    shapes: dict[str, tuple[int, ...]] = {"rule_scale": ()}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def mlp(name: str, inputs: int, hidden: int, outputs: int) -> None:
        linear(f"{name}.0", inputs, hidden)
        linear(f"{name}.2", hidden, outputs)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for name in seen_nodes(spec, encoder):
        features = len(spec.node(name).features)
        shapes[f"encoder.mean_{name}"] = shapes[f"encoder.scale_{name}"] = (features,)
        mlp(f"encoder.embed.{name}", features, width, width)
    for i in range(encoder.layers if encoder.message_passing else 0):
        if encoder.hubs:
            for k, (_, target, links) in enumerate(ways_of(spec)):
                linear(f"encoder.hubs.{i}.up.{k}", len(links) * width, width, bias=False)
                linear(f"encoder.hubs.{i}.down.{k}", width, len(links) * width, bias=False)
                mlp(f"encoder.hubs.{i}.mix.{target}", width, width, width)
            for node in spec.nodes if spec.links else ():
                if node.name != spec.context:
                    norm(f"encoder.hubs.{i}.norm.{node.name}")
        norm(f"encoder.attention.{i}.norm")
        linear(f"encoder.attention.{i}.qkv", width, 3 * width)
        linear(f"encoder.attention.{i}.out", width, width)
        norm(f"encoder.attention.{i}.mix_norm")
        mlp(f"encoder.attention.{i}.mix", width, 2 * width, width)
    norm("encoder.final")
    linear("score_node", width, width)
    linear("score_context", width, width, bias=False)
    linear("score", width, 1, bias=False)
    if has_wait:
        mlp("wait", width, width, 1)
    return shapes


def seen_nodes(spec: GraphSpec, encoder: EncoderConfig) -> list[str]:
    """Node types that a network looks at: without hubs only what is scored, and the context."""
    hubs = encoder.message_passing and encoder.hubs and bool(spec.links)
    return [n.name for n in spec.nodes if hubs or n.name in (spec.candidate, spec.context)]


def ways_of(spec: GraphSpec) -> list[tuple[str, str, tuple[str, ...]]]:
    """(source, target, links) for every pair of node types that links join, in the order of the weights."""
    pairs = sorted({(link.source, link.target) for link in spec.links})
    return [
        (source, target, tuple(link.name for link in spec.links if (link.source, link.target) == (source, target)))
        for source, target in pairs
    ]
