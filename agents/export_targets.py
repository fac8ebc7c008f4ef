"""`dispatchgym export POLICY --target NAME`: what to run so that a policy decides elsewhere, and what it loses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import BUNDLE
from dispatchgym.agents.simulation.names import scheduler
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.llm.needs import NEEDS
from dispatchgym.solvers.routing import ROUTING_RULES

ROUTING = "routing"
"""Family of the rules that choose a replica."""
ROUTING_NEEDS: Mapping[str, frozenset[str]] = {
    "session-hash": frozenset({"sessions"}),
    "cache-aware": frozenset({"prompts"}),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a policy can decide.

    Attributes:
        families: of policies that make sense there; None for all.
        without: what schedulers may need and the target lacks -> what becomes of it.
        refused: what it cannot do without.
        run: what to type, for a policy by its name.
    """

    families: tuple[str, ...] | None
    without: Mapping[str, str]
    refused: Mapping[str, str]
    run: Callable[[str], str]


def _shell(text: str) -> str:
    """In quotes for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _yaml(text: str) -> str:
    """In quotes for YAML."""
    return "'" + text.replace("'", "''") + "'"


def _vllm(name: str) -> str:
    return f"""\
pip install 'dispatchgym[vllm]'
DISPATCHGYM_POLICY={_shell(name)} vllm serve MODEL \\
  --scheduler-cls dispatchgym.serving.plugins.vllm.LearnedScheduler

Bounds and tenants come with each request: "vllm_xargs": {{"ttft_slo_ms": 500, "tpot_slo_ms": 50, "tenant": "a"}}.
Back to vLLM's own rules: DISPATCHGYM_POLICY=vllm, or leave --scheduler-cls away."""


def _sglang(name: str) -> str:
    return f"""\
pip install 'dispatchgym[sglang]'
DISPATCHGYM_POLICY={_shell(name)} SGLANG_PLUGINS=dispatchgym python -m sglang.launch_server --model-path MODEL

Experimental: order and admission of waiting requests alone, one GPU an engine.
Bounds and tenants come with each request: "custom_params": {{"ttft_slo_ms": 500, "tpot_slo_ms": 50, "tenant": "a"}}.
Back to SGLang's own rules: unset DISPATCHGYM_POLICY."""


def _kube(name: str) -> str:
    return f"""\
pip install 'dispatchgym[kubernetes]'
dispatchgym serve kube --policy {_shell(name)} --port 8888

`dispatchgym serve kube --help` prints the part of kube-scheduler's configuration that names this extender."""


def _ray(name: str) -> str:
    if name in ROUTING_RULES:
        return f"""\
pip install 'dispatchgym[ray]'

In a deployment of any model server:
  request_router_config=RequestRouterConfig(
    request_router_class="dispatchgym.serving.plugins.ray_router:RuleRouter",
    request_router_kwargs={{"rule": "{name}"}},
  )"""
    return f"""\
pip install 'dispatchgym[ray]'
cat > app.yaml <<'END'
applications:
  - name: llm
    import_path: dispatchgym.serving.plugins.ray_llm:llm_app
    args: {{model: MODEL, replicas: 2, rule: shortest-queue, actor: {{num_gpus: 1}}}}
    deployments:
      - name: llm
        user_config: {{scheduler: {_yaml(name)}}}
END
serve run app.yaml

Another scheduler, while it runs: change user_config, then `serve deploy app.yaml`; back again in the same way."""


def _onnx(name: str) -> str:
    folder = bundles.find(name.removeprefix(BUNDLE))
    if not (folder / bundles.ONNX).exists():
        raise UsageError(f"{name} has no {bundles.ONNX}: export its run again without --no-onnx")
    code = f"""\
import onnxruntime; s = onnxruntime.InferenceSession({json.dumps(str(folder / bundles.ONNX))});
print([(i.name, i.shape) for i in s.get_inputs()], [o.name for o in s.get_outputs()])"""
    return f"""\
pip install onnxruntime
python -c {_shell(code)}

Its inputs are the graph that {bundles.MANIFEST} describes under "spec"; {bundles.GOLDEN} holds graphs and the logits
that they must give. Fallback rule, time limit and what is feasible are then up to the program that calls it."""


TARGETS: Mapping[str, Target] = {
    "vllm": Target(
        ("llm",),
        {
            "swap": "vLLM keeps no KV on the host: who would be swapped out is computed anew",
            "segments": "forward passes are not interrupted: decided between steps only",
            "wait": "waits are polled once a millisecond while the engine is idle",
            "pins": "prefixes cannot be held: vLLM's own cache decides what it keeps",
        },
        {
            "lengths": "it reads true output lengths, which no live engine knows",
            "drafts": "speculation belongs to vLLM, and nothing would be left of the scheduler",
        },
        _vllm,
    ),
    "sglang": Target(
        ("llm",),
        {
            "swap": "SGLang decides who gives up its KV, and when",
            "segments": "forward passes are not interrupted: decided between steps only",
            "wait": "requests are held back while others run, for a second at most",
            "pins": "prefixes cannot be held: SGLang's own cache decides what it keeps",
        },
        {
            "lengths": "it reads true output lengths, which no live engine knows",
            "drafts": "speculation belongs to SGLang, and nothing would be left of the scheduler",
        },
        _sglang,
    ),
    "ray": Target(
        ("llm", ROUTING),
        {
            "swap": "swapping out needs a pool on the host: add host_blocks to args",
            "segments": "arrivals do not interrupt a forward pass: decided between steps only",
            "sessions": "over HTTP sessions are told by the header X-Session-Id alone",
            "prompts": "over HTTP the router sees no prompts and takes the shortest queue; calls by a handle show them",
        },
        {
            "lengths": "it reads true output lengths, which no live engine knows",
            "drafts": "the server drafts no tokens",
        },
        _ray,
    ),
    "kube": Target(("packing",), {}, {}, _kube),
    "onnx": Target(None, {}, {}, _onnx),
}


def family_of(name: str) -> str:
    """Which world a policy is for.

    Raises:
        UnknownNameError: no such scheduler. BundleError: a bundle that cannot be trusted.
    """
    if name.startswith(BUNDLE):
        family: str = bundles.load(bundles.find(name.removeprefix(BUNDLE)), "numpy").manifest["family"]
        return family
    if name in ROUTING_RULES:
        return ROUTING
    scheduler(name)
    return "llm"


def refuse_or_degrade(name: str, target: str) -> list[str]:
    """What is lost when the policy decides there, one line each.

    Raises:
        UsageError: it cannot; says why.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    there, family = TARGETS[target], family_of(name)
    if there.families is not None and family not in there.families:
        raise UsageError(f"{name} is a policy for {family}; target {target} is for {', '.join(there.families)}")
    if target == "onnx" and not name.startswith(BUNDLE):
        raise UsageError(f"{name} is a rule, not a network: target onnx takes bundle:NAME")
    needs = set({**NEEDS, **ROUTING_NEEDS}.get(name.partition("+")[0], ()))
    if family == "llm" and not name.startswith(BUNDLE) and not scheduler(name)().oracle:
        needs.discard("lengths")
    for need in sorted(needs):
        if need in there.refused:
            raise UsageError(f"{name} cannot run under {target}: {there.refused[need]}")
    return [there.without[need] for need in sorted(needs) if need in there.without]


def instructions(name: str, target: str) -> str:
    """What to type, and what is lost.

    Raises:
        UsageError: the policy cannot decide there.
    """
    losses = refuse_or_degrade(name, target)
    lost = "".join(f"\nlost there: {loss}" for loss in losses)
    return TARGETS[target].run(name) + (f"\n{lost}" if lost else "")


def policy_name(source: Path) -> str:
    """A scheduler's name as it is; a folder or a .zip as bundle:PATH."""
    text = str(source)
    if not text.startswith(BUNDLE) and (source.is_dir() or source.suffix == ".zip"):
        if source.is_dir() and not (source / bundles.MANIFEST).is_file():
            raise UsageError(f"{source} is a run, not a bundle: `dispatchgym export {source} --out BUNDLE` makes one")
        return BUNDLE + text
    return text
