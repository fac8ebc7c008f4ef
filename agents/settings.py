"""What a policy was trained for, by family: its graphs, its setting, and the rules that it may fall back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.jobshop import graph as shop_graphs
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.llm import graph as engine_graph
from dispatchgym.envs.llm.batch import ChoicesConfig
from dispatchgym.envs.packing import shortlist
from dispatchgym.envs.packing.shortlist import ShortlistConfig
from dispatchgym.solvers.jobshop.rules import RULES as SHOP_RULES
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.packing.rules import RULES as PACKING_RULES

Setting = ShopConfig | ShortlistConfig | ChoicesConfig

SPECS: Mapping[str, GraphSpec] = {**shop_graphs.SPECS, **shortlist.SPECS, **engine_graph.SPECS}
"""Graphs that policies are trained on."""


class Family(NamedTuple):
    """A world as bundles know it.

    Attributes:
        key: of the setting, in a manifest.
        kind: class of the setting.
        rules: names of the rules that a policy may fall back to.
    """

    key: str
    kind: type[Setting]
    rules: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "jobshop": Family("shop", ShopConfig, tuple(SHOP_RULES)),
    "packing": Family("choices", ShortlistConfig, (*PACKING_RULES, "kube-scheduler")),
    "llm": Family("choices", ChoicesConfig, tuple(SCHEDULERS)),
}
FALLBACKS: Mapping[str, str] = {"repack": "kube-scheduler", "bindings": "fgd", "engine": "least-slack"}
"""Graph -> rule, where a policy does not start as a rule that is quick enough itself."""
LAST_FALLBACK = "lrpt"


def may_wait(setting: Setting) -> bool:
    """WAIT can be a candidate."""
    return isinstance(setting, ShopConfig) and setting.is_blocking


def fallback(graph: str, rule: str | None) -> str:
    """The rule that a policy falls back to: the one it starts as, if that is quick."""
    known = FAMILIES[SPECS[graph].family].rules
    return rule if rule is not None and rule in known else FALLBACKS.get(graph, LAST_FALLBACK)


def setting_of(manifest: Mapping[str, Any]) -> Any:
    """The manifest's setting, as plain values."""
    return manifest[FAMILIES[manifest["family"]].key]
