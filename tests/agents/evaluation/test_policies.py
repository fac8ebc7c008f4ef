"""Names of policies: what they mean, what is refused, and what the answer to a typo is."""

from __future__ import annotations

import numpy as np
import pytest

from dispatchgym.agents.evaluation import tuning
from dispatchgym.agents.evaluation.policies import RulePolicy, SampledRule, parse_policies, parse_policy
from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop import generate, library
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.solvers.jobshop import rules
from tests.agents.evaluation.examples import problem


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_is_a_policy_and_runs(name: str) -> None:
    policy = parse_policy(name)
    answer = policy.prepare(problem())(None, 0)
    assert (policy.name, policy.kind, answer.status) == (name, "rule", "ok")
    assert answer.schedule is not None
    assert answer.decisions == 4


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        (" MWKR ", "mwkr"),
        ("mwkr+cap0.70", "mwkr+cap0.7"),
        ("mwkr+cap=0.7", "mwkr+cap0.7"),
        ("fdd/mwkr+cap=tuned", "fdd/mwkr+cap=tuned"),
        ("lrpt+active", "lrpt+active"),
        ("lrpt+delta0.50", "lrpt+delta0.5"),
        ("sampled:mwkr@128", "sampled:mwkr@128"),
        ("sampled:mwkr@8+cap0.7+noise0.2", "sampled:mwkr+cap0.7@8+noise0.2"),
        ("sampled:mwkr+cap0.7@8", "sampled:mwkr+cap0.7@8"),
        ("cp-sat@10s", "cp-sat@10s"),
        ("cp-sat@0.50d", "cp-sat@0.5d"),
        ("cp-sat@10s+hint:mwkr", "cp-sat@10s+hint:mwkr"),
        ("cp-sat+hint:mwkr+cap0.7+workers:2@10s", "cp-sat@10s+hint:mwkr+cap0.7+workers:2"),
        ("clairvoyant@3d", "clairvoyant@3d"),
        ("rolling@1s", "rolling@1s"),
    ],
)
def test_a_policy_has_one_name_however_it_is_typed(typed: str, canonical: str) -> None:
    assert parse_policy(typed).name == canonical
    assert parse_policy(canonical) == parse_policy(typed)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("mwrk", "mwkr"), ("cpsat@10s", "cp-sat"), ("sample:mwkr@8", "sampled"), ("sampled:mwrk@8", "mwkr")],
)
def test_a_typo_is_answered_with_the_closest_name(typed: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean.*'{hint}'"):
        parse_policy(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("mwkr+kap0.7", "'kap0.7' is not an option of a rule"),
        ("mwkr+cap-1", "needs a number"),
        ("mwkr+cap0", "lets no job in"),
        ("mwkr+delta1.5", "needs a number from 0 to 1"),
        ("sampled:mwkr", "sampled:RULE@RUNS"),
        ("sampled:mwkr@0", "sampled:RULE@RUNS"),
        ("sampled:mwkr@many", "sampled:RULE@RUNS"),
        ("cp-sat", "needs a limit"),
        ("cp-sat@0s", "needs a limit above 0"),
        ("cp-sat@10", "needs a limit"),
        ("cp-sat@10s@5d", "has 2 limits"),
        ("cp-sat@10s+cap0.7", "is not an option of cp-sat"),
        ("cp-sat@10s+workers:0", "needs a number from 1"),
    ],
)
def test_an_option_that_cannot_be_names_itself_and_the_way_out(typed: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        parse_policy(typed)


def test_a_list_keeps_its_order_and_each_policy_once() -> None:
    assert [p.name for p in parse_policies("mwkr, spt,mwkr+cap=0.7,MWKR,")] == ["mwkr", "spt", "mwkr+cap0.7"]
    with pytest.raises(UsageError, match="no policy named"):
        parse_policies(" , ")


def test_the_builder_is_named_and_only_the_classic_shop_has_a_choice() -> None:
    assert parse_policy("mwkr").builder("jssp") == "non-delay"
    assert parse_policy("mwkr", delta=1.0).builder("jssp") == "active"
    assert parse_policy("mwkr", delta=0.25).builder("jssp") == "hybrid-0.25"
    assert parse_policy("mwkr", delta=1.0).builder("bws") == parse_policy("mwkr").builder("bws")
    assert parse_policy("mwkr+active").variants == {"jssp"}
    assert parse_policy("mwkr+active", delta=0.25).builder("jssp") == "active"
    assert parse_policy("cp-sat@1s").builder("jssp") is None


def test_the_builder_changes_the_schedule() -> None:
    la01 = problem(library.load("la01"))
    makespans = {
        name: parse_policy(name).prepare(la01)(None, 0).schedule.makespan  # type: ignore[union-attr]
        for name in ("spt", "spt+active")
    }
    assert makespans["spt"] == rules.rollout(la01.instance, "spt", ShopConfig()).schedule.makespan
    assert (
        makespans["spt+active"] == rules.rollout(la01.instance, "spt", ShopConfig("jssp", "active")).schedule.makespan
    )
    assert makespans["spt"] != makespans["spt+active"]


def test_sampling_keeps_the_best_and_follows_its_seed() -> None:
    la02 = problem(library.load("la02"))

    def makespan(samples: int, seed: int) -> int:
        schedule = SampledRule(RulePolicy("mwkr"), samples, 0.5).prepare(la02)(None, seed).schedule
        assert schedule is not None
        return schedule.makespan

    assert makespan(300, 1) == makespan(300, 1)  # two batches
    assert makespan(300, 1) <= makespan(256, 1)  # the first batch is the same
    assert len({makespan(4, seed) for seed in range(5)}) > 1


def test_sampling_is_not_for_shops_where_it_would_need_to_know_the_shutdowns() -> None:
    assert "isbjssp" not in parse_policy("sampled:mwkr@8").variants
    assert parse_policy("cp-sat@1s").variants == {"jssp", "bws", "bns"}
    assert parse_policy("clairvoyant@1s").variants == {"isbjssp"}
    assert parse_policy("rolling@1s").variants == {"isbjssp"}


def test_a_tuned_cap_is_the_best_on_the_training_instances() -> None:
    config = ShopConfig("bws")
    cap = tuning.best_cap("mwkr", 6, 4, config)
    seeds = [derived_seed("tuning", "6x4", str(k)) for k in range(tuning.TRAINING_INSTANCES)]
    training = [generate.random_instance(np.random.default_rng(seed), 6, 4) for seed in seeds]

    def total(each: float | None) -> int:
        return sum(rules.rollout(i, "mwkr", config, cap=each).schedule.makespan for i in training)

    totals = {each: total(each) for each in tuning.CAPS}
    assert totals[cap] == min(totals.values()) < max(totals.values())


def test_a_tuned_rule_runs_with_its_cap_and_says_which() -> None:
    shop = problem(library.load("la01"), variant="bws")
    answer = parse_policy("mwkr+cap=tuned").prepare(shop)(None, 0)
    cap = tuning.best_cap("mwkr", 10, 5, ShopConfig("bws"))
    assert answer.notes == {"cap": cap}
    assert answer.schedule is not None
    assert (
        answer.schedule.makespan == rules.rollout(shop.instance, "mwkr", ShopConfig("bws"), cap=cap).schedule.makespan
    )
