"""The summary by hand: which metric, which mean, which pairs."""

from __future__ import annotations

import json
from pathlib import Path

from dispatchgym.agents.evaluation.problem import Reference
from dispatchgym.agents.evaluation.statistics import Interval
from dispatchgym.agents.evaluation.summary import Entry, summarise, write_summary
from tests.agents.evaluation.examples import row

BEST = Reference(100, "optimum")


def only(entries: list[Entry], policy: str, group: str | None = None) -> Entry:
    (found,) = [each for each in entries if (each.policy, each.group) == (policy, group)]
    return found


def test_means_by_hand() -> None:
    rows = [row("mwkr", name, value, BEST) for name, value in (("a", 100), ("b", 104), ("c", 108), ("d", 160))]
    entry = only(summarise(rows, "mwkr"), "mwkr")
    assert (entry.metric, entry.mean, entry.interquartile_mean) == ("gap_pct", 18.0, 6.0)
    assert (entry.runs, entry.solved, entry.averaged, entry.instances, entry.failed) == (4, 4, 4, 4, 0)
    assert entry.reference_kinds == {"optimum": 4}
    assert (entry.wall_s, entry.cpu_s, entry.decisions) == (0.5, 0.25, 4.0)
    assert entry.paired is None
    assert entry.base is None


def test_a_run_of_one_instance_has_no_interval() -> None:
    entry = only(summarise([row("mwkr", "a", 110, BEST)], "mwkr"), "mwkr")
    assert (entry.mean, entry.mean_interval, entry.interquartile_mean_interval) == (10.0, None, None)


def test_every_group_and_all_of_them_get_an_entry() -> None:
    rows = [row("mwkr", "a", 110, BEST, group="x"), row("mwkr", "b", 130, BEST, group="y")]
    entries = summarise(rows, "mwkr")
    assert [(e.group, e.mean) for e in entries] == [(None, 20.0), ("x", 10.0), ("y", 30.0)]
    # One instance a group: drawing within the groups can only give the same two again.
    assert entries[0].mean_interval is None


def test_shops_are_never_averaged_together() -> None:
    rows = [row("mwkr", "a", 110, BEST), row("mwkr", "a", 150, BEST, variant="bws")]
    assert [(e.variant, e.mean) for e in summarise(rows, "mwkr") if e.group is None] == [("jssp", 10.0), ("bws", 50.0)]


def test_seeds_are_averaged_before_pairing() -> None:
    rows = [
        row("mwkr", "a", 110, BEST),
        row("random", "a", 120, BEST, seed=0),
        row("random", "a", 130, BEST, seed=1),
    ]
    paired = only(summarise(rows, "mwkr"), "random").paired
    assert paired is not None
    assert (paired.problems, paired.mean, paired.worse) == (1, 15.0, 1)


def test_shutdowns_are_paired_seed_by_seed() -> None:
    rows = [
        row(policy, "a", value, BEST, variant="isbjssp", seed=seed, scenario=f"p=0.1,resume,seed={seed}")
        for policy, values in (("mwkr", (110, 150)), ("spt", (120, 140)))
        for seed, value in enumerate(values)
    ]
    paired = only(summarise(rows, "mwkr"), "spt").paired
    assert paired is not None
    assert (paired.problems, paired.mean, paired.better, paired.worse) == (2, 0.0, 1, 1)
    assert paired.interval == Interval(-10.0, 10.0)


def test_without_references_makespans_are_averaged_and_pairs_are_percent_of_the_base() -> None:
    rows = [row("mwkr", "a", 200), row("mwkr", "b", 400), row("spt", "a", 220), row("spt", "b", 360)]
    entry = only(summarise(rows, "mwkr"), "spt")
    assert (entry.metric, entry.mean, entry.reference_kinds) == ("makespan", 290.0, {"none": 2})
    assert entry.paired is not None
    assert entry.paired.mean == 0.0  # +10 % and -10 %
    assert entry.paired.interval == Interval(-10.0, 10.0)


def test_gaps_need_references_for_half_of_a_group_and_for_every_group() -> None:
    half = [row("mwkr", "a", 110, BEST), row("mwkr", "b", 500)]
    entry = only(summarise(half, "mwkr"), "mwkr")
    assert (entry.metric, entry.mean, entry.averaged, entry.solved) == ("gap_pct", 10.0, 1, 2)
    assert entry.reference_kinds == {"none": 1, "optimum": 1}
    other_group = [row("mwkr", "c", 500, group="y")]
    entries = summarise(half + other_group, "mwkr")
    assert [(e.group, e.metric) for e in entries] == [(None, "makespan"), ("2x2", "gap_pct"), ("y", "makespan")]


def test_failures_are_counted_and_not_averaged() -> None:
    rows = [row("mwkr", "a", 110, BEST), row("mwkr", "b", None, BEST, status="invalid"), row("spt", "b", 120, BEST)]
    entries = summarise(rows, "spt")
    entry = only(entries, "mwkr")
    assert (entry.runs, entry.solved, entry.failed, entry.mean) == (2, 1, 1, 10.0)
    assert entry.paired is None  # the two solved nothing in common
    nothing = only(summarise(rows[1:2], "mwkr"), "mwkr")
    assert (nothing.mean, nothing.interquartile_mean, nothing.mean_interval) == (None, None, None)


def test_summary_json_reads_back_with_named_fields(tmp_path: Path) -> None:
    rows = [
        row(p, i, v, BEST) for p, i, v in (("mwkr", "a", 110), ("spt", "a", 120), ("mwkr", "b", 130), ("spt", "b", 130))
    ]
    write_summary(summarise(rows, "mwkr"), tmp_path / "summary.json", {"suite": "tests"}, [], {"tuned": []})
    content = json.loads((tmp_path / "summary.json").read_text())
    spt = content["entries"][1]
    assert (content["suite"], content["failures"], content["tuned"]) == ("tests", [], [])
    assert (spt["policy"], spt["mean"], spt["mean_interval"]) == ("spt", 25.0, [20.0, 30.0])
    assert spt["paired"] == {
        "problems": 2,
        "mean": 5.0,
        "interquartile_mean": 5.0,
        "interval": [0.0, 10.0],
        "better": 0,
        "equal": 1,
        "worse": 1,
    }
