"""report.html needs nothing but itself, says what was run, and holds what it draws."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.policies import Answer, parse_policies
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.agents.evaluation.report import write_report
from dispatchgym.agents.evaluation.results import make_rows
from dispatchgym.agents.evaluation.summary import summarise
from dispatchgym.agents.evaluation.work import WorkItem, execute, plan
from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.instance import Instance
from tests.agents.evaluation.examples import TWO_JOBS, FixedPolicy, best_schedule, problem

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tags(HTMLParser):
    """Collects attributes and text, and that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # <rect .../> closes itself

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(
    finished: Finished, path: Path, failures: tuple[dict[str, Any], ...] = (), contradictions: tuple[str, ...] = ()
) -> str:
    rows = make_rows(finished)
    kinds = {item.policy.name: item.policy.kind for item, _ in finished}
    head = {
        "suite": "tests <&>",
        "base": rows[0].policy,
        "seeds": 2,
        "policies": [{"policy": policy, "kind": kind} for policy, kind in kinds.items()],
        "sessions": [{"began": "2026-01-02T03:04:05+00:00", "cpu": "a processor", "cores": 2}],
        "versions": {"dispatchgym": "1.2.3"},
        "notes": ["a note"],
    }
    entries = summarise(rows, rows[0].policy, resamples=50)
    write_report(path, head, finished, rows, entries, failures, [], contradictions)
    return path.read_text()


def run(shops: list[Problem], policies: str, seeds: int = 2) -> Finished:
    return [(item, execute(item)) for item in plan(shops, parse_policies(policies), seeds)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    shops = [
        problem(library.load("ft06"), group="small"),
        problem(library.load("la01"), group="big"),
        problem(library.load("la01"), variant="isbjssp", shutdown_probability=0.1),
    ]
    history = ((0.01, 9, 3), (0.2, 7, 7))
    solver = FixedPolicy(
        lambda scenario, seed: Answer(best_schedule(), "optimal", bound=7, history=history), "cp-sat@1s", "solver"
    )
    item = WorkItem(problem(TWO_JOBS, group="tiny"), solver, 0)
    finished = [*run(shops, "mwkr,random"), (item, execute(item))]
    return page(finished, tmp_path_factory.mktemp("report") / "report.html")


def gantt(html: str) -> dict[str, list[dict[str, Any]]]:
    found = re.search(r'<script type="application/json" id="gantt">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, list[dict[str, Any]]] = json.loads(found[1])
    return data


def test_the_page_is_well_formed_and_loads_nothing(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    assert all(link.startswith("#") for link in tags.links)
    assert set(re.findall(r"https?://[^\"'\s]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(http" not in html


def test_the_page_says_what_was_run_on_what(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    text = " ".join(tags.text)
    for said in (
        "tests <&>",
        "3 policies on 4 problems, 2 seeds: 11 runs",
        "2026-01-02 03:04:05 UTC",
        "a processor, 2 cores",
        "dispatchgym 1.2.3",
        "Interrupting blocking job shop",
        "1 of 1 proven optimal",
        "not proven unless its own row says optimal",
        "a note",
    ):
        assert said in text, said


def test_every_group_has_a_box_plot_and_solvers_a_curve(html: str) -> None:
    assert re.findall(r"<h4>(.*?)</h4>", html) == ["small", "big", "tiny", "10x5"]
    assert html.count('aria-label="Gap over wall time"') == 1


def test_the_gantt_data_rebuild_the_schedules(html: str) -> None:
    data = gantt(html)
    assert [shop["name"] for shop in data["jssp"]] == ["ft06", "la01", "two-jobs"]
    tiny = data["jssp"][2]
    assert tiny["runs"]["cp-sat@1s"]["start"] == [0, 3, 0, 3]
    assert (tiny["job_ptr"], tiny["machine"], tiny["duration"]) == ([0, 2, 4], [0, 1, 1, 0], [3, 2, 2, 4])
    stormy = data["isbjssp"][0]
    assert stormy["blocking"]
    assert stormy["downtime"]
    scenario = problem(library.load("la01"), variant="isbjssp", shutdown_probability=0.1).scenario(0)
    assert scenario is not None
    assert stormy["downtime"] == [[w["machine"], w["from"], w["to"]] for w in scenario.downtime()]
    assert len(stormy["runs"]["mwkr"]["end"]) == 50


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    nasty = "</script><b onclick='x'>&"
    instance = Instance.from_routes(nasty, [[(0, 3), (1, 2)], [(1, 2), (0, 4)]])
    html = page(run([problem(instance, group=nasty)], "mwkr"), tmp_path / "report.html")
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "<b onclick" not in html.replace("<\\/script><b onclick='x'>&", "")
    assert gantt(html)["jssp"][0]["name"] == nasty


def test_failures_and_contradictions_stand_at_the_top(tmp_path: Path) -> None:
    failure = {"item": "la01 mwkr", "status": "invalid", "message": "machine 0 runs <two> jobs"}
    html = page(run([problem()], "mwkr"), tmp_path / "report.html", (failure,), ("bound 9 above 7",))
    top = html[html.index("<h1>") : html.index('<div class="cards">')]
    for said in (
        "Facts that contradict each other",
        "bound 9 above 7",
        "1 run failed",
        "machine 0 runs &lt;two&gt; jobs",
    ):
        assert said in top


def test_a_run_where_everything_failed_still_gets_a_page(tmp_path: Path) -> None:
    item = WorkItem(problem(), FixedPolicy(lambda scenario, seed: Answer(None, "unknown")), 0)
    html = page([(item, execute(item))], tmp_path / "report.html")
    assert "0 gave a schedule" in html
    assert gantt(html) == {"jssp": []}
