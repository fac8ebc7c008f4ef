"""Suites of packing: what is in them, and people's own clusters."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.agents.evaluation.packing import suites
from dispatchgym.agents.evaluation.packing.policies import parse_policy
from dispatchgym.agents.evaluation.policies import in_list
from dispatchgym.agents.evaluation.work import check_policies
from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.packing import files, generate
from dispatchgym.envs.packing.batch import PackingConfig
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing.hard_seeds import DETERMINISTIC

NEEDS_DATA = pytest.mark.skipif(
    not os.environ.get("DISPATCHGYM_DATA"), reason="DISPATCHGYM_DATA is not set: the openb lists are not here"
)


def test_a_cell_is_hard_fresh_and_the_same_every_time() -> None:
    first, second = (list(suites.suite("packing/priority-matters-4x4-p2-u0.95").build()) for _ in range(2))
    assert [p.instance.digest for p in first] == [p.instance.digest for p in second]
    assert len({p.instance.digest for p in first}) == suites.MANY
    for one in first:
        assert (one.variant, one.group, one.instance.size) == ("pods", "4x4 p2 u0.95", "4x16")
        assert len(one.instance.tiers) <= 2
        assert kube_scheduler.rollout(one.instance, DETERMINISTIC, PackingConfig()).metrics.pending > 0
    trained_on = generate.priority_matters(4, 4, 2, 0.95, suites.FIRST_SEED - 2**31)
    assert trained_on.digest not in {p.instance.digest for p in first}


def test_one_size_has_all_its_cells() -> None:
    problems = list(suites.suite("packing/priority-matters-8x4-p2").build())
    assert [p.group for p in problems[:: suites.SOME]] == [f"8x4 p2 u{u}" for u in ("0.90", "0.95", "1.00", "1.05")]
    assert len({p.instance.name for p in problems}) == len(problems) == 4 * suites.SOME


def test_default_policies_of_every_suite_exist_and_fit_its_world() -> None:
    for suite in suites.SUITES.values():
        policies = in_list(suite.policies, parse_policy)
        if suite.name in ("packing/smoke", "packing/twin-lifetimes"):
            assert check_policies(list(suite.build()), policies) == []


@pytest.mark.parametrize("name", ["8", "8x", "0x4", "8x4-p0", "8x4-u0.1", "9999x4", "8x4-x", "8x4-u0.95-p4"])
def test_a_cell_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="such as packing/priority-matters-32x8"):
        suites.suite(f"packing/priority-matters-{name}")


def test_an_unknown_suite_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'packing/openb-default'"):
        suites.suite("packing/openb-defualt")


def test_without_the_data_the_error_names_the_variable_and_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPATCHGYM_DATA", raising=False)
    for name in ("packing/openb", "packing/openb-cpu250", "packing/openb-lifetimes"):
        with pytest.raises(UsageError, match=r"DISPATCHGYM_DATA is None.*packing/openb-twin"):
            list(suites.suite(name).build())


@NEEDS_DATA
def test_openb_is_every_list_under_the_published_seeds() -> None:
    problems = list(suites.suite("packing/openb-multigpu50").build())
    assert [p.instance.name for p in problems] == [f"openb-multigpu50-seed{seed}" for seed in range(42, 52)]
    assert {(p.group, p.variant, p.instance.num_nodes) for p in problems} == {("openb-multigpu50", "gpus", 1213)}


def test_own_clusters_are_read_from_json_and_csv(tmp_path: Path) -> None:
    plain = generate.priority_matters(3, 4, 2, 0.9, 1)
    (tmp_path / "a.json").write_text(json.dumps(files.plain(replace(plain, name="mine"))))
    (tmp_path / "nodes.csv").write_text("sn,cpu_milli,memory_mib\nx,4000,8192\ny,2000,4096\n")
    (tmp_path / "web.csv").write_text(
        "name,cpu_milli,memory_mib,priority,creation_time\nlate,100,10,5,90\nearly,200,20,0,70\n"
    )
    (tmp_path / "batch.csv").write_text(
        "name,cpu_milli,memory_mib,creation_time,deletion_time\na,100,10,5,90\nb,200,20,7,70\n"
    )
    problems = list(suites.own_clusters(str(tmp_path)).build())
    assert [(p.instance.name, p.variant) for p in problems] == [
        ("mine", "pods"),
        ("batch", "lifetimes"),
        ("web", "pods"),
    ]
    assert problems[0].instance.digest == plain.digest
    web = problems[2].instance
    assert web.pods.names == ("early", "late")
    assert (web.pods.arrival.tolist(), web.pods.priority.tolist()) == ([0, 20], [0, 5])
    assert web.nodes.capacity.tolist() == [[4000, 8192], [2000, 4096]]
    assert np.array_equal(problems[1].instance.pods.lifetime, [85, 63])


def test_own_clusters_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cluster at"):
        suites.own_clusters(str(tmp_path))
    (tmp_path / "pods.csv").write_text("name,cpu_milli,memory_mib\na,1,1\n")
    with pytest.raises(UsageError, match="one list of nodes"):
        suites.own_clusters(str(tmp_path))
    (tmp_path / "nodes.csv").write_text("sn,cpu_milli\nx,1\n")
    with pytest.raises(InvalidInstanceError, match=r"nodes\.csv: there is no column 'memory_mib'"):
        suites.own_clusters(str(tmp_path))
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InvalidInstanceError, match=r"bad\.json"):
        suites.own_clusters(str(tmp_path / "*.json"))
