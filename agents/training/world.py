"""The world that a configuration trains in: decided by the graph that it names."""

from __future__ import annotations

from typing import Any, cast

from dispatchgym.agents.llm_world import LLMWorld
from dispatchgym.agents.packing_world import PackingWorld
from dispatchgym.agents.shop_world import ShopWorld
from dispatchgym.agents.training.config import TrainConfig, is_llm, is_packing
from dispatchgym.agents.worlds import World
from dispatchgym.envs.jobshop.batch import GraphName
from dispatchgym.envs.packing.shortlist import ShortName


def world_of(config: TrainConfig) -> World[Any]:
    """The job shop, clusters of pods or GPUs, or an LLM engine."""
    if is_llm(config.graph):
        return LLMWorld(config.llm)
    if is_packing(config.graph):
        return PackingWorld(cast(ShortName, config.graph), config.packing)
    graph = cast(GraphName, config.graph)
    return ShopWorld(config.shop, config.instances, graph, config.validation.sizes, config.tracking.gantt)
