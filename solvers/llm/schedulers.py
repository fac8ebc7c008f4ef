"""The schedulers by name."""

from __future__ import annotations

from dispatchgym.envs.registry import Registry

SCHEDULERS = Registry(
    "scheduler",
    {
        "vllm": "dispatchgym.solvers.llm.vllm:Vllm",
        "vllm-lcf": "dispatchgym.solvers.llm.vllm:VllmLeastComputed",
        "sarathi": "dispatchgym.solvers.llm.sarathi:Sarathi",
        "orca": "dispatchgym.solvers.llm.orca:Orca",
        "fcfs-static": "dispatchgym.solvers.llm.fcfs_static:FcfsStatic",
        "conservative": "dispatchgym.solvers.llm.conservative:Conservative",
        "aggressive": "dispatchgym.solvers.llm.aggressive:Aggressive",
        "edf": "dispatchgym.solvers.llm.edf:EarliestDeadline",
        "past-future": "dispatchgym.solvers.llm.past_future:PastFuture",
        "mc-sf": "dispatchgym.solvers.llm.mc_sf:McSf",
        "sglang": "dispatchgym.solvers.llm.sglang:SGLang",
        "flow-prefill": "dispatchgym.solvers.llm.flow_prefill:FlowPrefill",
        "laps": "dispatchgym.solvers.llm.laps:Laps",
        "srtf": "dispatchgym.solvers.llm.srtf:Srtf",
        "trail": "dispatchgym.solvers.llm.srtf:Trail",
        "ltr": "dispatchgym.solvers.llm.ltr:LearningToRank",
        "mlfq": "dispatchgym.solvers.llm.mlfq:Mlfq",
        "vtc": "dispatchgym.solvers.llm.vtc:Vtc",
        "andes": "dispatchgym.solvers.llm.andes:Andes",
        "least-slack": "dispatchgym.solvers.llm.least_slack:LeastSlack",
        "batch-llm": "dispatchgym.solvers.llm.batch_llm:BatchLlm",
        "eb-plus": "dispatchgym.solvers.llm.eb_plus:EbPlus",
        "i-dlm-stationary": "dispatchgym.solvers.llm.stationary:Stationary",
        "exspec": "dispatchgym.solvers.llm.exspec:ExSpec",
        "eqspec": "dispatchgym.solvers.llm.exspec:EqSpec",
        "oracle": "dispatchgym.solvers.llm.oracle:Oracle",
        "menu": "dispatchgym.solvers.llm.menu:Menu",
    },
)
"""Name -> class; every one is made without arguments, and takes its constants by keyword."""
