"""Suites: their problems and references, people's own files, and what a typo is answered with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dispatchgym.agents.evaluation import suites
from dispatchgym.agents.evaluation.policies import parse_policies
from dispatchgym.agents.evaluation.problem import Reference
from dispatchgym.agents.evaluation.work import check_policies
from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.jobshop import library, text
from tests.agents.evaluation.examples import TWO_JOBS


@pytest.mark.parametrize(
    ("name", "count", "groups"),
    [
        ("jobshop/smoke", 3, {"6x6": 1, "10x5": 1, "15x5": 1}),
        (
            "jobshop/lawrence",
            40,
            dict.fromkeys(["10x5", "15x5", "20x5", "10x10", "15x10", "20x10", "30x10", "15x15"], 5),
        ),
        ("jobshop/classics", 82, {"abz": 5, "ft": 3, "la": 40, "orb": 10, "swv": 20, "yn": 4}),
        ("jobshop/random-4x3", 20, {"4x3": 20}),
        ("blocking/lawrence", 40, None),
        ("interrupting/lawrence", 160, None),
        ("demo", 23, None),
    ],
)
def test_suites_hold_what_they_say(name: str, count: int, groups: dict[str, int] | None) -> None:
    problems = suites.suite(name).problems()
    assert len(problems) == count
    assert {problem.suite for problem in problems} == {name}
    if groups is not None:
        assert Counter(problem.group for problem in problems) == groups


def test_taillard_is_ten_of_each_size_with_references() -> None:
    problems = suites.suite("jobshop/taillard").problems()
    assert list(Counter(p.group for p in problems).items()) == [
        (size, 10) for size in ("15x15", "20x15", "20x20", "30x15", "30x20", "50x15", "50x20", "100x20")
    ]
    kinds = {p.instance.name: p.reference.kind for p in problems if p.reference}
    assert len(kinds) == 80
    assert (kinds["ta01"], kinds["ta40"]) == ("optimum", "best-known")  # research/jobshop.md: ta40 is open


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_suite_can_run_with_its_own_policies(name: str) -> None:
    suite = suites.suite(name)
    check_policies(suite.problems(), parse_policies(suite.policies))
    assert suite.seeds >= 1


def test_references_follow_the_shop() -> None:
    def reference(name: str, suite: str) -> Reference | None:
        return next(p.reference for p in suites.suite(suite).problems() if p.instance.name == name)

    assert reference("la01", "jobshop/lawrence") == Reference(666, "optimum")
    assert reference("la01", "blocking/lawrence") == Reference(793, "optimum")
    assert reference("la11", "blocking/lawrence") == Reference(1476, "best-known")


def test_the_blocking_references_hold_in_the_interrupting_shop_only_without_shutdowns() -> None:
    la01 = [p for p in suites.suite("interrupting/lawrence").problems() if p.instance.name == "la01"]
    assert [(p.group, p.reference) for p in la01] == [
        ("10x5 p=0", Reference(793, "optimum")),
        ("10x5 p=0.05", None),
        ("10x5 p=0.1", None),
        ("10x5 p=0.2", None),
    ]


def test_variant_moves_a_suite_to_another_shop() -> None:
    problems = suites.suite("blocking/lawrence").problems(variant="bns")
    assert {p.variant for p in problems} == {"bns"}
    assert problems[0].reference == Reference(881, "optimum")
    assert len(suites.suite("jobshop/smoke").problems("isbjssp", (0.0, 0.3))) == 6
    with pytest.raises(UsageError, match="leave --variant out"):
        suites.suite("demo").problems(variant="bws")


def test_random_suites_are_the_same_every_time_and_differ_by_size() -> None:
    first, second = suites.suite("jobshop/random-4x3").problems(), suites.suite("jobshop/random-4x3").problems()
    assert [p.instance.digest for p in first] == [p.instance.digest for p in second]
    assert len({p.instance.digest for p in first}) == 20
    assert first[3].instance.name == "random-4x3-03"


@pytest.mark.parametrize("size", ["", "10", "0x5", "10x-5", "10x5x2", "9999x9999", "axb"])
def test_a_random_size_that_cannot_be_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="JOBSxMACHINES"):
        suites.suite(f"jobshop/random-{size}")


def test_an_unknown_suite_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'jobshop/taillard'"):
        suites.suite("jobshop/tailard")


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_shutdown_probability_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match="shutdown probability"):
        suites.suite("interrupting/lawrence").problems(probabilities=(0.1, p))


def test_own_instances_are_read_from_a_folder_or_a_pattern(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsp"):
        text.write(TWO_JOBS, tmp_path / name)
    names = [p.instance.name for p in suites.own_instances(str(tmp_path)).problems("bws")]
    assert names == ["a", "b"]
    assert [p.instance.name for p in suites.own_instances(str(tmp_path / "*.jsp")).problems()] == ["c"]
    assert [p.instance.name for p in suites.own_instances(str(tmp_path / "a.txt")).problems()] == ["a"]


def test_own_instances_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no instance file at"):
        suites.own_instances(str(tmp_path))
    (tmp_path / "bad.txt").write_text("2 2\n0 3 1 2\n1 2 0 -4\n")
    with pytest.raises(InvalidInstanceError, match=r"bad\.txt.*3"):
        suites.own_instances(str(tmp_path))
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        text.write(TWO_JOBS, tmp_path / folder / "one.txt")
    with pytest.raises(UsageError, match="would both be called 'one'"):
        suites.own_instances(str(tmp_path / "*" / "one.txt"))


def test_own_files_get_a_published_reference_only_if_they_hold_that_instance(tmp_path: Path) -> None:
    text.write(library.load("la01"), tmp_path / "la01.txt")
    text.write(TWO_JOBS, tmp_path / "la02.txt")
    assert [p.reference for p in suites.own_instances(str(tmp_path)).problems()] == [Reference(666, "optimum"), None]


def test_own_references_replace_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "references.json"
    path.write_text(json.dumps({"ft06": 60, "la01": {"value": 600, "kind": "bound"}, "zz": 1}))
    problems = suites.with_references(suites.suite("jobshop/smoke").problems(), suites.read_references(path), path)
    assert [p.reference for p in problems] == [
        Reference(60, "best-known"),
        Reference(600, "bound"),
        Reference(926, "optimum"),  # la06, left as it was
    ]


def test_own_references_say_nothing_about_shutdowns(tmp_path: Path) -> None:
    problems = suites.suite("jobshop/smoke").problems("isbjssp", (0.0, 0.1))
    given = suites.with_references(problems, {"ft06": Reference(60, "best-known")}, tmp_path)
    assert [p.reference for p in given if p.instance.name == "ft06"] == [Reference(60, "best-known"), None]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[55]", "must be an object"),
        ('{"ft06": "55"}', "'ft06' is \"55\""),
        ('{"ft06": 0}', "above 0"),
        ('{"ft06": true}', "above 0"),
        ('{"ft06": {"value": 55, "kind": "proven"}}', "optimum | best-known"),
        ('{"other": 55}', "names none of the instances"),
    ],
)
def test_references_that_cannot_be_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "references.json"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        suites.with_references(suites.suite("jobshop/smoke").problems(), suites.read_references(path), path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_reference_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read references .*none\.json"):
        suites.read_references(tmp_path / "none.json")
