"""Tracking: everything is told, nothing leaves the run directory, and no failure of wandb reaches the training."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from dispatchgym.agents.train_command import main
from dispatchgym.agents.training import tracking
from dispatchgym.agents.training.config import load
from dispatchgym.agents.training.evaluations import Evaluations
from dispatchgym.agents.training.run import train
from dispatchgym.agents.training.tracking import Tracker, evaluation_table, log_bundle, payload
from dispatchgym.envs.api import UsageError
from tests.agents.training.wandb_log import artifacts, history, logs, names, records

TINY = [
    "name=tiny",
    "device=cpu",
    "iterations=3",
    "instances.sizes=[[4, 3], [3, 3]]",
    "rollout.instances=2",
    "rollout.rollouts=4",
    "policy.encoder.width=8",
    "policy.encoder.layers=1",
    "policy.encoder.heads=2",
    "validation.instances=4",
    "validation.every=2",
    "validation.rules=[lrpt, mwkr]",
    "checkpoint_every=1",
]

OFFLINE = """
import os, sys
def refuse(event, arguments):
    address = arguments[1] if event == "socket.connect" else None
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") and not isinstance(address, str):
        os.write(2, f"network: {event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(refuse)
from dispatchgym.agents.train_command import main
main(sys.argv[1:])
"""
"""Trains in a process whose Python code can open local sockets only, those that have a path instead of an address."""


@contextmanager
def trap() -> Iterator[tuple[str, list[object]]]:
    """A proxy that only counts who calls: wandb's service is no Python, but it asks the proxy of its environment."""
    callers: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, caller = server.accept()
                except OSError:
                    return
                callers.append(caller)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", callers
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained offline in a process of its own, with an empty home; fails if anybody calls out."""
    folder = tmp_path_factory.mktemp("tracked")
    home = folder / "home"
    (home / ".cache").mkdir(parents=True)
    kernels = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dispatchgym"
    (home / ".cache" / "dispatchgym").symlink_to(kernels)  # compiled once for all
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    with trap() as (proxy, callers):
        lower = [f"{kind}_proxy" for kind in ("http", "https", "all")]
        proxies = {spelled: proxy for name in lower for spelled in (name, name.upper())}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", OFFLINE, *TINY, "--out", str(folder / "run")],
            cwd=home,
            env={**kept, **proxies, "no_proxy": "", "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "wandb" not in done.stdout.replace(str(folder), "")  # says nothing of its own accord
    assert callers == []
    return folder / "run"


def test_everything_wandb_writes_lies_in_the_run_directory(tracked: Path) -> None:
    home = tracked.parent / "home"
    assert [path for path in home.rglob("*") if "wandb" in path.name] == []
    (log,) = logs(tracked)
    staged = [
        Path(entry.local_path)
        for record in records(log)
        if record.WhichOneof("record_type") == "artifact"
        for entry in record.artifact.manifest.contents
    ]
    assert staged
    for file in staged:
        assert file.is_file()
        assert file.is_relative_to(tracked.resolve())


def test_every_figure_of_the_run_is_told_under_its_name(tracked: Path) -> None:
    (log,) = logs(tracked)
    told = history(log)
    written = [json.loads(line) for line in (tracked / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in told] == [0, 1, 2, 3] == [row["_step"] for row in told]
    for mine, theirs in zip(written, told, strict=True):
        assert {name: theirs[name] for name in mine} == pytest.approx(mine)
    assert {"speed/decisions_per_s", "speed/rollout_s", "speed/update_s", "speed/gpu_memory_mib"} <= names(tracked)
    # rules are judged once and told with every evaluation, so that they are lines
    mwkr = told[0]["validation/mwkr"]
    assert [row.get("validation/mwkr") for row in told] == [mwkr, None, mwkr, mwkr]
    assert told[2]["ahead/4x3"] == pytest.approx(
        min(told[0]["validation/lrpt/4x3"], told[0]["validation/mwkr/4x3"]) - told[2]["validation/greedy/4x3"]
    )


def test_the_documentation_names_every_figure_and_no_other(tracked: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    told = {
        name for name in names(tracked) if name.startswith(("ahead/", "rollout/", "speed/", "train/", "validation/"))
    }
    written = set(re.findall(r"`((?:ahead|rollout|speed|train|validation)/[\w/]+)`", page))
    patterns = {name: name.replace("RULE", "(lrpt|mwkr)").replace("SIZE", "[0-9]+x[0-9]+") for name in written}
    assert {name for name in told if not any(re.fullmatch(pattern, name) for pattern in patterns.values())} == set()
    untold = {name for name, pattern in patterns.items() if not any(re.fullmatch(pattern, each) for each in told)}
    assert untold == {"validation/best", "validation/best/SIZE"}  # this run draws no samples


def test_the_configuration_is_told(tracked: Path) -> None:
    (log,) = logs(tracked)
    (run,) = [record.run for record in records(log) if record.WhichOneof("record_type") == "run"]
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (told["name"], told["seed"], told["ppo"]["entropy"]) == ("tiny", 0, 0.002)
    assert told["versions"]["dispatchgym"]
    assert (run.project, run.display_name) == ("dispatchgym", "tiny")


def test_the_policys_schedule_is_drawn_beside_the_best_rules(tracked: Path) -> None:
    (log,) = logs(tracked)
    (drawn,) = [row for row in history(log) if "schedules/filenames" in row]
    assert drawn["iteration"] == 3
    policy, rule = drawn["schedules/captions"]
    assert policy.endswith("number 0: policy, iteration 3")
    start = json.loads((tracked / "metrics.jsonl").read_text().splitlines()[0])
    assert rule.endswith("rule lrpt" if start["validation/lrpt"] <= start["validation/mwkr"] else "rule mwkr")
    for name in drawn["schedules/filenames"]:
        picture = np.asarray(Image.open(log.parent / "files" / name))
        assert picture.shape[2] == 3
        assert picture.std() > 10  # something is on it


def test_the_evaluations_are_a_table_and_the_best_weights_an_artifact(tracked: Path) -> None:
    (log,) = logs(tracked)
    found = {name: (kind, sorted(files)) for name, kind, files in artifacts(log)}
    assert found["tiny-best"] == ("weights", ["about.json", "weights.safetensors"])
    (path,) = [row["evaluations/path"] for row in history(log) if "evaluations/path" in row]
    table = json.loads((log.parent / "files" / path).read_text())
    assert table["columns"] == ["iteration", "size", "policy", "lrpt", "mwkr"]
    assert [row[:2] for row in table["data"]] == [[k, size] for k in (0, 2, 3) for size in ("all", "3x3", "4x3")]


def test_a_resumed_run_goes_on_under_its_id(tracked: Path) -> None:
    assert main(["--resume", str(tracked), "iterations=4"]) == 0
    first, second = logs(tracked)
    both = records(first) + records(second)
    ids = [record.run.run_id for record in both if record.WhichOneof("record_type") == "run"]
    assert len(ids) == 2
    assert ids[0] == ids[1]
    assert [row["iteration"] for row in history(second)] == [4]
    assert history(second)[0]["validation/mwkr"] == history(first)[0]["validation/mwkr"]  # still knows the rules


def test_an_exported_bundle_joins_the_run(tracked: Path, tmp_path: Path) -> None:
    (tmp_path / "my bundle").mkdir()
    (tmp_path / "my bundle" / "manifest.json").write_text("{}")
    assert log_bundle(tracked, tmp_path / "my bundle")
    assert ("my-bundle", "bundle", ["manifest.json"]) in list(artifacts(logs(tracked)[-1]))
    assert not log_bundle(tmp_path, tmp_path / "my bundle")  # no run


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == tracking.__name__]


def test_a_wandb_that_cannot_start_is_said_once_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", fail)
    before = dict(os.environ)
    assert train(load(None, TINY), tmp_path, lambda *_: None).iteration == 3
    assert warnings_of(caplog) == [
        "wandb failed (OSError: no space left); the run directory holds everything without it"
    ]
    assert dict(os.environ) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from dispatchgym.agents.training.config import load
from dispatchgym.agents.training.run import train
def kill(iteration, row, timing):
    for process in Path("/proc").glob("[0-9]*") if iteration == 1 else ():
        try:
            command = (process / "cmdline").read_bytes().split(b"\\0")
        except OSError:
            continue
        if command[0].endswith(b"wandb-core") and str(os.getpid()).encode() in command:
            os.kill(int(process.name), signal.SIGKILL)
            print("killed")
print("iteration", train(load(None, sys.argv[2:]), Path(sys.argv[1]), kill).iteration)
"""
"""Trains, and kills wandb's service after the first iteration."""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds wandb's service by /proc")
def test_a_service_that_dies_in_the_middle_is_said_once_and_the_training_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), *TINY]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "killed\niteration 3\n")
    assert done.stderr.count("wandb failed") == len(done.stderr.splitlines()) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_environment_is_as_before_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", "mine")
    before = dict(os.environ)
    tracker = Tracker(load(None, TINY), tmp_path)
    assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path.resolve())
    tracker.finish(True)
    tracker.finish(True)
    assert dict(os.environ) == before


def test_disabled_means_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Tracker(load(None, [*TINY, "tracking.wandb=disabled"]), tmp_path).finish(True)
    assert list(tmp_path.iterdir()) == []


def test_online_without_a_key_is_refused_before_anything_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UsageError, match="set WANDB_API_KEY"):
        main([*TINY, "tracking.wandb=online", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "wandb").exists()


COURSE = [
    {
        "iteration": 0,
        "validation/lrpt": 20.0,
        "validation/lrpt/6x6": 10.0,
        "validation/lrpt/10x5": 30.0,
        "validation/fdd/mwkr": 18.0,
        "validation/fdd/mwkr/6x6": 12.0,
        "validation/fdd/mwkr/10x5": 24.0,
        "validation/greedy": 20.0,
        "validation/greedy/6x6": 10.0,
        "validation/greedy/10x5": 30.0,
    },
    {"iteration": 1, "rollout/return": -3.0},
    {"iteration": 2, "validation/greedy": 15.0, "validation/greedy/6x6": 11.0, "validation/greedy/10x5": 19.0},
]


def evaluated(*rows: Mapping[str, float]) -> Evaluations:
    evaluations = Evaluations(["lrpt", "fdd/mwkr"])
    for row in rows:
        evaluations.add(row)
    return evaluations


def test_evaluations_hold_the_policy_to_the_best_rule_of_each_size() -> None:
    evaluations = evaluated(*COURSE)
    assert evaluations.sizes == ["6x6", "10x5"]  # 36 operations, 50
    assert evaluations.best_rule() == ("fdd/mwkr", 18.0)
    assert evaluations.best_rule("6x6") == ("lrpt", 10.0)
    assert evaluations.best == COURSE[2]
    assert evaluations.ahead(COURSE[2]) == {"ahead/all": 3.0, "ahead/6x6": -1.0, "ahead/10x5": 5.0}
    assert evaluations.ahead(COURSE[1]) == {}


def test_figures_on_another_validation_set_do_not_compare() -> None:
    other = {"iteration": 3, "validation/lrpt": 50.0, "validation/greedy": 45.0}
    evaluations = evaluated(*COURSE, other)
    assert evaluations.best == other
    assert evaluations.rows == [other]
    assert evaluations.best_rule() == ("lrpt", 50.0)


def test_without_rules_the_policy_stands_alone() -> None:
    evaluations = evaluated({"iteration": 0, "validation/greedy": 9.0, "validation/greedy/3x3": 9.0})
    assert evaluations.best_rule() is None
    assert payload({"iteration": 1, "validation/greedy": 8.0}, {"rollout_s": 2.0}, evaluations) == {
        "iteration": 1,
        "validation/greedy": 8.0,
        "speed/rollout_s": 2.0,
    }


def test_the_table_has_a_row_an_evaluation_and_size() -> None:
    columns, data = evaluation_table(evaluated(*COURSE))
    assert columns == ["iteration", "size", "policy", "lrpt", "fdd/mwkr"]
    assert data[3:] == [[2, "all", 15.0, 20.0, 18.0], [2, "6x6", 11.0, 10.0, 12.0], [2, "10x5", 19.0, 30.0, 24.0]]
