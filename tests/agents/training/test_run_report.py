"""report.html of a run: complete, self-contained, right in its figures, and there whatever way a run ends."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents.shop_world import POLICY, ShopExam
from dispatchgym.agents.training.config import TrainConfig, dump, load
from dispatchgym.agents.training.pictures import write_pictures
from dispatchgym.agents.training.run_report import write_run_report
from dispatchgym.agents.training.validation import Validation
from dispatchgym.envs.jobshop.schedule import Schedule, validate

VOID = {"meta", "br"}

ROWS: list[dict[str, Any]] = [
    {
        "iteration": 0,
        "validation/lrpt": 20.0,
        "validation/lrpt/3x3": 10.0,
        "validation/lrpt/4x3": 30.0,
        "validation/<b>": 18.0,
        "validation/<b>/3x3": 12.0,
        "validation/<b>/4x3": 24.0,
        "validation/greedy": 20.0,
        "validation/greedy/3x3": 10.0,
        "validation/greedy/4x3": 30.0,
    },
    *({"iteration": k, "rollout/return": -9.0 + k, "rollout/best": -5.0, "rollout/spread": 1.0,
       "rollout/decisions": 1000.0, "train/approx_kl": 0.01 * k, "train/clip_fraction": 0.1,
       "train/entropy_loss": -0.5, "train/explained_variance": 0.2, "train/learning_rate": 3e-4,
       "train/loss": float("nan") if k == 2 else 0.3} for k in (1, 2, 3)),
    {"iteration": 4, "validation/greedy": 15.0, "validation/greedy/3x3": 11.0, "validation/greedy/4x3": 19.0},
    {"iteration": 5, "validation/greedy": 16.0, "validation/greedy/3x3": 12.5, "validation/greedy/4x3": 19.5},
]  # fmt: skip

TIMING = [
    {"iteration": 0, "evaluation_s": 1.0},
    *({"iteration": k, "decisions_per_s": 250.0 * k, "rollout_s": 3.0, "update_s": 1.0, "evaluation_s": 0.0}
      for k in (1, 2, 2, 3)),
]  # fmt: skip


class Page(HTMLParser):
    """Text, references and table rows of a page, and that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def config() -> TrainConfig:
    return load(None, ["name=a & b", "iterations=9", "instances.sizes=[[3, 3], [4, 3]]", "validation.instances=2"])


def run_directory(folder: Path) -> Path:
    """A run as its files tell it; the last line of each is still being written."""
    (folder / "wandb").mkdir()
    (folder / "config.resolved.yaml").write_text(dump(config()).replace("[lrpt, mwkr, fdd/mwkr]", "[lrpt, <b>]"))
    for name, lines in (("metrics", ROWS), ("timing", TIMING)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iterat')
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Page:
    write_run_report(run_directory(tmp_path), "finished")
    return Page((tmp_path / "report.html").read_text())


def test_the_page_loads_nothing(page: Page, tmp_path: Path) -> None:
    html = (tmp_path / "report.html").read_text()
    assert page.references == []
    assert set(re.findall(r"https?://[^\"'\s]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in html


def test_the_page_sums_the_run_up(page: Page) -> None:
    for said in (
        "a & b",
        "Finished: 9 iterations.",
        "Policy at its best 15.00 % iteration 4",
        "Best rule 18.00 % <b>; the policy is 3.00 points better",
        "Policy at the start 20.00 % rule lrpt",
        "Decisions a second 500",  # the median of 250, 500, 500 and 750
        "Time 17.0 s rollout 71 %, update 24 %, evaluation 6 %",  # 12, 4 and 1 of 17 s
        "Decisions learned from 3,000",
    ):
        assert said in page.text, said


def test_the_page_says_how_to_go_on(page: Page, tmp_path: Path) -> None:
    for command in (
        f"dispatchgym export {tmp_path} --out",
        f"dispatchgym train --resume {tmp_path}",
        f"wandb sync {tmp_path}/wandb/",
    ):
        assert command in page.text, command


def test_every_size_is_held_to_its_best_rule(page: Page) -> None:
    assert page.rows == [
        ["size", "lrpt", "<b>", "policy", "ahead of the best rule"],
        ["3x3", "10.00", "12.00", "11.00", "-1.00"],
        ["4x3", "30.00", "24.00", "19.00", "+5.00"],
        ["all", "20.00", "18.00", "15.00", "+3.00"],
    ]


def test_the_curves_are_there(page: Page, tmp_path: Path) -> None:
    titles = re.findall(r"<h4>(.*?)</h4>", (tmp_path / "report.html").read_text())
    assert titles == [
        "Validation gap",
        "Return of a rollout",
        "Ahead of the best rule, by size",
        "Spread of the rollouts of an instance",
        "KL divergence of an update",
        "Clip fraction",
        "Entropy of a decision",
        "Explained variance of the critic",
        "Learning rate",
        "Loss",
        "Decisions a second",
        "Seconds of an iteration",
    ]
    assert "Last: KL 0.03." in page.text
    assert "Last: entropy 0.5." in page.text


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("running", "Running, as of iteration 5 of 9."),
        ("interrupted", "Interrupted after iteration 5 of 9; resuming goes on"),
        ("loss is <nan>", "Stopped after iteration 5. loss is <nan>"),
    ],
)
def test_the_page_says_how_the_run_ended(tmp_path: Path, outcome: str, said: str) -> None:
    write_run_report(run_directory(tmp_path), outcome)
    assert said in Page((tmp_path / "report.html").read_text()).text


def test_a_run_that_has_not_begun_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(dump(config()))
    write_run_report(tmp_path, "interrupted")
    assert not (tmp_path / "report.html").exists()


def test_the_schedules_in_the_page_are_valid_and_as_long_as_they_say(tmp_path: Path) -> None:
    chosen = config()
    validation = Validation(chosen)
    validation.rules()
    assert isinstance(validation.exam, ShopExam)
    pictured = validation.exam.pictured
    for each in pictured:
        each.schedules[POLICY] = each.schedules["mwkr"]
    run_directory(tmp_path)
    write_pictures(tmp_path / "pictures.json", "jssp", pictured, 4)
    write_run_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="gantt">(.*?)</script>', html, re.DOTALL)
    assert found
    assert 'data-world="jssp"' in html
    problems = json.loads(found[1])["jssp"]
    assert len(problems) == len(pictured) == 2
    for problem, each in zip(problems, pictured, strict=True):
        assert next(iter(problem["runs"])) == problem["first"][0] == "policy, iteration 4"
        assert problem["runs"][problem["first"][1]]["makespan"] == min(r["makespan"] for r in problem["runs"].values())
        for run in problem["runs"].values():
            start = each.instance.duration * 0 + run["start"]
            end = start + each.instance.duration
            validate(Schedule(start, end, end), each.instance, "jssp")
            assert run["makespan"] == end.max()
            assert run["gap"] == pytest.approx(100 * (end.max() / each.bound - 1))
