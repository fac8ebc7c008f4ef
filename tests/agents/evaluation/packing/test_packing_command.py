"""`dispatchgym evaluate packing/...` from end to end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatchgym.agents.evaluation.command import main
from dispatchgym.envs.api import DispatchGymError, UnknownNameError, UsageError
from dispatchgym.envs.packing import files, generate, twin

POLICIES = "kube-scheduler,best-fit,kube-scheduler+repair0.005d,cp-sat@0.05d,cp-sat@0.02d+tiers"


def evaluate(*arguments: str | Path) -> int:
    return main([*map(str, arguments), "--workers", "0"])


def rows(out: Path) -> list[dict[str, Any]]:
    found = json.loads((out / "results.json").read_text())
    return [{key: value for key, value in row.items() if key not in ("wall_s", "cpu_s")} for row in found]


def test_smoke_gives_rows_outcomes_a_report_and_evidence_that_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, evidence = tmp_path / "out", tmp_path / "evidence"
    given = ("packing/smoke", "--policies", POLICIES, "--out", out, "--evidence", evidence)
    assert evaluate(*given) == 0
    found = rows(out)
    assert len(found) == 4 * 5
    assert {row["metric"] for row in found} == {"improved_pct"}
    for row in found:
        better = row["metrics"]["placed"] > row["metrics"]["default_placed"]
        assert row["value"] == (None if row["metrics"]["outcome"] == "nc" else 100.0 * better)
        assert (row["reference"], row["gap_pct"], row["variant"]) == (None, None, "pods")
    summary = json.loads((out / "summary.json").read_text())
    total = {e["policy"]: e for e in summary["entries"] if e["group"] is None}
    mine = [row for row in found if row["policy"] == "best-fit"]
    assert total["best-fit"]["mean"] == pytest.approx(np.mean([r["value"] for r in mine if r["value"] is not None]))
    assert total["best-fit"]["counts"] == Counter(row["metrics"]["outcome"] for row in mine)
    assert total["kube-scheduler"]["mean"] == 0.0
    repaired = total["kube-scheduler+repair0.005d"]
    assert repaired["paired"]["better"] == repaired["placed"]["more"] == 4
    assert {each["policy"] for each in summary["work"]} >= {"cp-sat@0.05d", "kube-scheduler+repair0.005d"}

    printed = capsys.readouterr().out
    assert "Pod packing by priority: improved on default" in printed
    page = (out / "report.html").read_text()
    assert "Outcomes in each group" in page
    assert page.count('class="part p') >= 10

    # The evidence alone: who runs at the end, within what the nodes have.
    clusters = {c["instance"]: c for c in map(json.loads, (evidence / "clusters.jsonl").read_text().splitlines())}
    lines = [json.loads(line) for line in (evidence / "placements.jsonl").read_text().splitlines()]
    assert len(lines) == len(found)
    for line in lines:
        cluster, where = clusters[line["instance"]], {}
        for event in line["events"]:
            if event["kind"] == "evict":
                del where[event["pod"]]
            else:
                where[event["pod"]] = event["node"]
        if line["plan"] is not None:
            where = {each["pod"]: each["node"] for each in line["plan"]}
        left = np.array(cluster["nodes"]["capacity"])
        for pod, node in where.items():
            left[node] -= cluster["pods"]["request"][pod]
        assert (left >= 0).all()
        priorities = Counter(cluster["pods"]["priority"][pod] for pod in where)
        assert [priorities[p] for p in sorted(set(cluster["pods"]["priority"]), reverse=True)] == line["metrics"][
            "placed"
        ]
        assert files.of_plain(cluster).digest == cluster["digest"]


def test_it_goes_on_with_more_policies_and_gives_the_same_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("packing/smoke", "--policies", "ffd", "--out", tmp_path / "a") == 0
    assert evaluate("packing/smoke", "--policies", "ffd,kube-scheduler+repair0.001d", "--out", tmp_path / "a") == 0
    assert "4 of 8 runs were done before" in capsys.readouterr().err
    assert evaluate("packing/smoke", "--policies", "ffd,kube-scheduler+repair0.001d", "--out", tmp_path / "b") == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_gpus_and_departures_have_columns_and_a_curve_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twin.json").write_text(json.dumps(files.plain(twin.load(1, scale=0.02))))
    given = ("--instances", tmp_path, "--policies", "fgd,random", "--seeds", "2", "--out", tmp_path / "out")
    assert evaluate(*given) == 0
    assert [(row["policy"], row["seed"]) for row in rows(tmp_path / "out")] == [
        ("fgd", 0),
        ("random", 0),
        ("random", 1),
    ]
    assert "GPU packing: GPU allocation" in capsys.readouterr().out
    (tmp_path / "leave").mkdir()
    leaving = generate.random_cluster(np.random.default_rng(1), 3, 20, departures=True)
    (tmp_path / "leave" / "one.json").write_text(json.dumps(files.plain(leaving)))
    given = ("--instances", tmp_path / "leave", "--policies", "kube-scheduler,fgd", "--out", tmp_path / "out2")
    assert evaluate(*given) == 0
    assert "pods leave: GPU allocation over time" in capsys.readouterr().out
    assert "Allocation over time" in (tmp_path / "out2" / "report.html").read_text()
    assert {row["metric"] for row in rows(tmp_path / "out2")} == {"mean_gpu_allocation_pct"}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["packing/openbb"], UnknownNameError, "did you mean 'packing/openb'"),
        (["paking/openb-twin"], UnknownNameError, "did you mean 'packing/openb-twin'"),
        (["packing/smoke", "--policies", "mwkr"], UnknownNameError, "packing policy 'mwkr' is not known"),
        (["packing/smoke", "--variant", "bws"], UsageError, "--variant is for job shops"),
        (["packing/smoke", "--builder", "active"], UsageError, "--builder and --delta are for job shops"),
        (["packing/smoke", "--shutdown-probabilities", "0.1"], UsageError, "is for job shops"),
        (["packing/twin-lifetimes", "--policies", "cp-sat@1s"], UsageError, "cannot run in lifetimes"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, arguments: list[str], error: type[DispatchGymError], said: str
) -> None:
    with pytest.raises(error, match=said):
        evaluate(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_name_the_suites_and_policies_of_both_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("packing/priority-matters", "packing/openb-twin", "jobshop/taillard", "POLICY+repair50ms", "fgd"):
        assert name in printed
