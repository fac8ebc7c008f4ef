"""Contests as they are asked for: fewer requests, other step times, a real model instead of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dispatchgym.agents.evaluation import plain
from dispatchgym.agents.evaluation.llm.problem import LlmProblem
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.backends import AUTO, TINY, RunsOn
from dispatchgym.envs.llm.profile import load_profile

if TYPE_CHECKING:
    from dispatchgym.agents.evaluation.request import Options


def problems(suite: plain.PlainSuite, options: Options) -> Sequence[LlmProblem]:
    """The suite's problems, changed as the options say.

    A model cannot run the contests whose point is what the simulator was told: rounds, and captured prompts.

    Raises:
        UsageError: options that do not go together; a suite of which nothing can run.
    """
    plain.no_shops(suite.name, options)
    if options.requests is not None and options.requests < 1:
        raise UsageError(f"--requests is {options.requests}; it must be 1 or more")
    if options.profile is not None:
        load_profile(options.profile)
    runs_on = RunsOn(options.executor, options.model or TINY, options.device or AUTO)
    made = [_changed(each, options, runs_on) for each in suite.build()]
    if runs_on.is_simulated:
        if options.model or options.device:
            raise UsageError("--model and --device go with --executor torch")
        return made
    if options.evidence:
        raise UsageError("--evidence runs everything twice, and a model never takes the same time; leave it out")
    able = [each for each in made if each.variant != "small" and not each.instance.captured]
    if not able:
        raise UsageError(f"{suite.name} is made of rounds of one second, which no model runs; choose another suite")
    return able


def notes(given: Sequence[LlmProblem]) -> list[str]:
    """What a reader should know of problems that run on a model."""
    runs_on = given[0].runs_on
    if runs_on.is_simulated:
        return []
    facts = ", ".join(f"{name} {value}" for name, value in runs_on.backend().facts.items())
    said = [f"steps run on a real model ({facts}); time is the sum of what they take, nobody waits for arrivals"]
    if any(each.instance.terms for each in given):
        said.append("what some contests tell the simulator a step costs besides (terms) does not hold here")
    if any(each.instance.engine.max_spec for each in given):
        said.append("drafts are the executor's own and hit as they hit, not by the profile's chance")
    return said


def _changed(problem: LlmProblem, options: Options, runs_on: RunsOn) -> LlmProblem:
    traffic = problem.instance
    if options.requests is not None:
        traffic = replace(traffic, requests=min(traffic.requests or options.requests, options.requests))
    if options.profile is not None:
        traffic = replace(traffic, profile=options.profile)
    return replace(problem, instance=traffic, runs_on=runs_on)
