"""`dispatchgym export --target`: what to run, what is lost, what is refused."""

from __future__ import annotations

import ast
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatchgym.agents.bundle import SHIPPED, BundleError
from dispatchgym.agents.export_command import main
from dispatchgym.agents.export_targets import ROUTING_NEEDS, TARGETS, instructions, refuse_or_degrade
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, is_compiled
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.solvers.llm.needs import NEEDS
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.routing import ROUTING_RULES
from tests.envs.llm.helpers import PROFILE, random_workload


class Watched:
    """A policy, and what its plans asked of the engine."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.name, self.oracle = policy, policy.name, policy.oracle
        self.texts = getattr(policy, "texts", False)
        self.asked: set[str] = {"lengths"} if policy.oracle else set()

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.policy.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        plan: Plan = self.policy.decide(view)
        decodes = set(view.running.id[view.running.decoding].tolist())
        signs = {
            "swap": any(how == "swap" for _, how in plan.preempt),
            "segments": plan.interruptible,
            "wait": plan.wait_until_s is not None,
            "pins": bool(plan.pins),
            "drafts": any(n > 1 for r, n in plan.grants if int(r) in decodes),
        }
        self.asked |= {need for need, is_asked in signs.items() if is_asked}
        return plan


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_schedulers_need_no_more_than_they_say(name: str) -> None:
    policy = SCHEDULERS[name]()
    if is_compiled(policy):
        assert name not in NEEDS
        return
    watched = Watched(policy)
    engine = EngineConfig(kv_blocks=60, max_spec=6, host_blocks=30, token_budget=256)
    for seed in range(3):
        simulate(random_workload(seed, 25, rate=200.0), watched, engine, PROFILE)
    assert watched.asked <= NEEDS.get(name, frozenset())


def test_what_is_lost_is_listed_and_what_cannot_be_is_refused() -> None:
    assert refuse_or_degrade("sarathi", "vllm") == []
    assert "computed anew" in refuse_or_degrade("mlfq", "vllm")[0]
    assert refuse_or_degrade("mc-sf+lengths=max", "vllm") == []
    with pytest.raises(UsageError, match="true output lengths"):
        refuse_or_degrade("mc-sf", "vllm")
    with pytest.raises(UsageError, match="speculation belongs to vLLM"):
        refuse_or_degrade("exspec", "vllm")
    with pytest.raises(UsageError, match="for packing; target vllm is for llm"):
        refuse_or_degrade("bundle:packing-priority", "vllm")
    with pytest.raises(UsageError, match="a rule, not a network"):
        refuse_or_degrade("sarathi", "onnx")


def test_the_command_prints_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laps", "--target", "vllm"]) == 0
    out = capsys.readouterr().out
    assert "--scheduler-cls dispatchgym.serving.plugins.vllm.LearnedScheduler" in out
    assert "DISPATCHGYM_POLICY='laps'" in out
    assert "lost there: waits are polled" in out
    assert "serve kube --policy 'bundle:packing-priority'" in instructions("bundle:packing-priority", "kube")
    assert "policy.onnx" in instructions("bundle:packing-priority", "onnx")


def test_names_are_quoted_for_where_they_are_typed(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    shutil.copytree(SHIPPED / "llm-engine", folder)
    name = f"bundle:{folder}"
    line = instructions(name, "vllm").splitlines()[1].removesuffix("\\")
    assert shlex.split(line)[0] == f"DISPATCHGYM_POLICY={name}"
    said = instructions(name, "ray").partition("<<'END'\n")[2].partition("\nEND\n")[0]
    assert yaml.safe_load(said)["applications"][0]["deployments"][0]["user_config"] == {"scheduler": name}
    code = shlex.split(instructions(name, "onnx").partition("\n")[2].partition("\n\n")[0])[2]
    assert ast.literal_eval(code.partition("InferenceSession(")[2].partition(");")[0]) == str(folder / "policy.onnx")


def test_a_bundle_that_cannot_be_trusted_is_refused_here_and_not_only_there(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "llm-engine", tmp_path / "mine")
    with (tmp_path / "mine" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"weights\.safetensors: its sha256"):
        main([str(tmp_path / "mine"), "--target", "vllm"])


def test_a_target_is_not_asked_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["laps", "--target", "vllm", "--out", "somewhere"])
    assert "--target writes nothing" in capsys.readouterr().err


def test_replicas_under_ray_are_told_which_scheduler_decides() -> None:
    said = instructions("flow-prefill", "ray")
    application = yaml.safe_load(said.partition("<<'END'\n")[2].partition("\nEND\n")[0])["applications"][0]
    assert application["deployments"] == [{"name": "llm", "user_config": {"scheduler": "flow-prefill"}}]
    assert application["args"]["rule"] in ROUTING_RULES
    assert "lost there: arrivals do not interrupt a forward pass" in said
    assert '"rule": "cache-aware"' in instructions("cache-aware", "ray")
    assert "the router sees no prompts" in instructions("cache-aware", "ray")
    with pytest.raises(UsageError, match="true output lengths"):
        instructions("srtf", "ray")
    with pytest.raises(UsageError, match="for routing; target vllm is for llm"):
        instructions("session-hash", "vllm")


def test_losses_and_refusals_are_of_known_needs() -> None:
    known = set().union(*NEEDS.values(), *ROUTING_NEEDS.values())
    for target in TARGETS.values():
        assert set(target.without) | set(target.refused) <= known
    vllm = TARGETS["vllm"]
    assert set(vllm.without) | set(vllm.refused) == set().union(*NEEDS.values())
    assert set(NEEDS) <= set(SCHEDULERS)
