"""`dispatchgym simulate` from the command line to its files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dispatchgym.agents.simulation.command import main
from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.llm.metrics import Metrics

HERE = ["--processes", "1"]
SMALL = ["--trace", "azure-2023-conv-twin", "--requests", "80", "--kv-blocks", "1500", *HERE]


class Page(HTMLParser):
    """Checks that elements close in order, and collects what is loaded from elsewhere."""

    VOID = frozenset(("meta", "br", "link", "img"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href") and value and "#" not in value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_files_and_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--schedulers", "vllm,sarathi+chunk=256,fcfs-static", "--report", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "has no SLOs of its own" in printed.err
    rows = json.loads((tmp_path / "results.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    first = rows[:3]
    assert [row["policy"] for row in first] == ["vllm", "sarathi+chunk=256", "fcfs-static"]
    for row in first:
        assert (row["status"], row["rate_scale"], row["metric"], row["seed"]) == ("ok", 1.0, "goodput_tps", 0)
        assert row["value"] == row["metrics"]["goodput_tps"]
        assert row["metrics"].keys() == set(Metrics.__dataclass_fields__)
        kept = [scale for scale, share in row["capacity"]["tried"] if share >= 0.9]
        assert row["capacity"]["scale"] == (max(kept) if kept else None)
    # Under pressure: all of them at the most that one of them carries.
    most = max(row["capacity"]["scale"] or 0 for row in first)
    assert most > 1
    assert [(row["policy"], row["rate_scale"]) for row in rows[3:]] == [(row["policy"], most) for row in first]
    answer = summary["answer"]
    assert answer["headline"] in " ".join(printed.out.split())
    assert summary["workload"]["requests"] == 80
    assert summary["engine"]["kv_blocks"] == 1500
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert (page.open, page.loads) == ([], [])
    assert answer["headline"] in page.text
    for part in ("The traffic as it comes", "Under pressure", "What happened over time", "How to read this"):
        assert part in page.text
    assert "NaN" not in page.text
    assert "nan" not in re.findall(r"[a-z]+", page.text)


def test_the_same_command_gives_the_same_numbers(tmp_path: Path) -> None:
    found = []
    for name, processes in (("one", "1"), ("two", "2")):  # in this process, and in workers
        several = ["--schedulers", "vllm,orca,sarathi", "--seed", "3", "--processes", processes]
        assert main([*SMALL, *several, "--out", str(tmp_path / name)]) == 0
        rows = json.loads((tmp_path / name / "results.json").read_text())
        found.append([(row["metrics"], row["capacity"]) for row in rows])
        assert not (tmp_path / name / "report.html").exists()
    assert found[0] == found[1]


def test_own_traffic_with_classes_and_slos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{k / 10},{100 + k},{5 + k % 7},{'chat' if k % 3 else 'search'},{1 if k % 3 else ''}" for k in range(60)]
    trace = tmp_path / "mine.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,class,ttft_slo_s", *rows[::-1]]))
    assert (
        main(["--trace", str(trace), "--schedulers", "vllm,edf", "--report", *HERE, "--out", str(tmp_path / "out")])
        == 0
    )
    assert "not in order of arrival (line 3); sorted" in capsys.readouterr().err
    row = json.loads((tmp_path / "out" / "results.json").read_text())[0]
    assert set(row["metrics"]["classes"]) == {"chat", "search"}
    assert "By class of request" in (tmp_path / "out" / "report.html").read_text()


def test_an_offline_batch_has_no_capacity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trace", "past-future", "--set", "distribution=3", "--requests", "30", "--schedulers", "vllm,orca"]
    assert main([*arguments, "--report", *HERE, "--out", str(tmp_path)]) == 0
    assert all(row["capacity"] is None for row in json.loads((tmp_path / "results.json").read_text()))
    assert "The batch takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], UsageError, "name a workload with --trace"),
        (["--trace", "azure-2023-con-twin"], UnknownNameError, "did you mean 'azure-2023-conv-twin'"),
        (["--trace", "chat", "--schedulers", "vlm"], UnknownNameError, "did you mean 'vllm'"),
        (["--trace", "chat", "--schedulers", "llm-engine"], UnknownNameError, "did you mean 'bundle:llm-engine'"),
        (["--trace", "chat", "--schedulers", "sarathi+chunk=abc"], UsageError, "chunk=abc is not a whole number"),
        (["--trace", "chat", "--schedulers", "sarathi+chunk=true"], UsageError, "chunk=True is not a whole number"),
        (["--trace", "chat", "--schedulers", "laps+window_s=nan"], UsageError, "window_s=nan is not a number"),
        (["--trace", "chat", "--schedulers", "vllm+chunked=1"], UsageError, "chunked=1 is not true or false"),
        (["--trace", "chat", "--schedulers", "sglang+order=5"], UsageError, "order=5 is not a word, such as fcfs"),
        (["--trace", "chat", "--schedulers", ","], UsageError, "--schedulers names none"),
        (["--trace", "chat", "--target", "1.5"], UsageError, "--target is 1.5"),
        (["--trace", "chat", "--set", "arrival"], UsageError, "'arrival' is no NAME=VALUE"),
        (["--trace", "chat", "--set", "arrival=never"], UnknownNameError, "arrival process 'never' is not known"),
        (["--trace", "chat", "--profile", "h200-8c"], UnknownNameError, "did you mean 'h200-8b'"),
        (["--trace", "chat", "--ttft-slo", "-1"], UsageError, "--ttft-slo is -1.0; it must be a time above 0"),
        (["--trace", "chat", "--tpot-slo", "nan"], UsageError, "--tpot-slo is nan"),
        (["--trace", "chat", "--kv-blocks", "-5"], UsageError, "kv_blocks -5 is below 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        main(["--schedulers", "vllm", *arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_bad_trace_is_refused_with_line_and_column(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,-5,5\n")
    with pytest.raises(InvalidInstanceError, match=r"mine\.csv, line 3, column prompt_tokens: '-5'"):
        main(["--trace", str(trace), "--schedulers", "vllm", "--out", str(tmp_path / "out")])


def test_the_lists_name_workloads_schedulers_and_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("azure-2023-conv", "past-future", "distribution=1", "sarathi", "h200-8b"):
        assert name in printed
