"""The standard text format: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.jobshop.instance import MAX_TIME, Instance
from dispatchgym.envs.jobshop.text import parse, read, render, write
from tests.envs.jobshop.strategies import instances


def routes(instance: Instance) -> list[list[tuple[int, int]]]:
    pairs = list(zip(instance.machine.tolist(), instance.duration.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(instance.job_ptr[:-1], instance.job_ptr[1:], strict=True)]


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("2 3\n0 5 1 6\t2 7\n 2 1   0 2\n")
    instance = read(path)
    assert (instance.name, instance.num_machines) == ("tiny", 3)
    assert routes(instance) == [[(0, 5), (1, 6), (2, 7)], [(2, 1), (0, 2)]]
    assert instance.release.tolist() == instance.arrival.tolist() == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n\n1 2 # jobs, machines\n\n# another\n0 4 1 5 # the only job\n\n",
        "\ufeff1 2\r\n0 4 1 5\r\n",
        " instance ft06\n\n ++++++++++++++++++\n Fisher and Thompson 6x6 instance (mt06)\n 1 2\n 0 4 1 5\n",
        "+++++\n---\n1 2\n+0 04 1 5",
    ],
    ids=["comments", "mark and carriage returns", "description as in the OR-Library", "rulers, signs, no last newline"],
)
def test_the_noise_of_published_files_is_skipped(text: str, tmp_path: Path) -> None:
    path = tmp_path / "noisy.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert routes(read(path)) == [[(0, 4), (1, 5)]]


def test_name_release_and_arrival_are_read_from_comments() -> None:
    instance = parse("#name: two jobs \n# release: 3 0\n2 1\n0 4\n0 5\n# arrival : 0 9\n# note: 7\n", "here", "file")
    assert instance.name == "two jobs"
    assert instance.release.tolist() == [3, 0]
    assert instance.arrival.tolist() == [0, 9]


names = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), max_size=20).map(str.strip)


@given(instance=instances(min_duration=0, max_duration=10**6), name=names)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(instance: Instance, name: str, tmp_path: Path) -> None:
    named = Instance(
        name,
        instance.job_ptr,
        instance.machine,
        instance.duration,
        instance.num_machines,
        instance.release,
        instance.arrival,
    )
    write(named, tmp_path / "instance.txt")
    back = read(tmp_path / "instance.txt")
    assert (back.name, back.digest) == (name, instance.digest)


@given(text=st.text(st.sampled_from("0123 -#x\n:e"), max_size=60) | st.text(max_size=30))
def test_any_text_is_an_instance_or_refused(text: str) -> None:
    with suppress(InvalidInstanceError):
        assert parse(text, "any.txt", "any").num_jobs >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file ends without the counts of jobs and machines"),
        ("# only\n\n# comments\n", "line 4: the file ends without the counts"),
        ("a description\nand no numbers", "line 2: the file ends without the counts"),
        ("2 x\n0 1\n0 1", "line 1: 'x' is not a whole number"),
        ("2\n0 1\n0 1", "line 1: expected the counts of jobs and machines, two numbers, got 1: '2'"),
        ("15 15 840612802 398197754", "line 1: expected the counts of jobs and machines, two numbers, got 4"),
        ("0 4", "line 1: 0 jobs; an instance needs at least one"),
        ("-2 4", "line 1: -2 jobs; an instance needs at least one"),
        ("2 0\n", "line 1: 0 machines; a shop has 1 to"),
        ("1 1000000000000\n0 1", "line 1: 1000000000000 machines; a shop has 1 to"),
        ("2 2\n0 1 1 1\n", "line 3: the file ends after 1 of the 2 jobs that line 1 promises"),
        ("# two jobs\n2 2\n\n0 1 1 1\n", "line 5: the file ends after 1 of the 2 jobs that line 2 promises"),
        ("1 2\n0 1\n\n1 1\n", "line 4: one job more than the 1 that line 1 promises: '1 1'"),
        ("1 2\n0 1\nend of file\n", "line 3: one job more than the 1 that line 1 promises: 'end of file'"),
        ("1 2\n0 1 1\n", "line 2: 3 numbers; a job is pairs of machine and duration"),
        ("1 2\n0 1 1 2.5\n", "line 2: '2.5' is not a whole number"),
        ("1 2\n0 1 1 1_0\n", "line 2: '1_0' is not a whole number"),
        ("1 2\n0 1 1 ٣\n", "line 2: '٣' is not a whole number"),
        ("1 2\n0 1 two 2\n", "line 2: 'two' is not a whole number"),
        ("1 2\n0 1 1 -2\n", "line 2: duration -2 on machine 1; it must be 0 to"),
        ("1 2\n1 1 2 2\n", "line 2: machine 2 is not known; machines are 0 to 1, counted from 0"),
        ("1 2\n-1 1 1 2\n", "line 2: machine -1 is not known"),
        (f"1 2\n0 {MAX_TIME + 1}\n", f"line 2: duration {MAX_TIME + 1} on machine 0; it must be 0 to {MAX_TIME}"),
        ("1 2\n0 " + "9" * 30, f"line 2: '{'9' * 30}' is too large a number"),
        ("1 2\n0 " + "9" * 9000, f"line 2: '{'9' * 39} is too large a number"),
        (f"2 1\n0 {MAX_TIME}\n0 1", f"line 3: the durations up to here add up to {MAX_TIME + 1}, more than {MAX_TIME}"),
        ("# release: 1 2\n1 1\n0 1", "line 1: 2 release times for 1 jobs"),
        ("# arrival: -4\n1 1\n0 1", "line 1: job 0 has arrival time -4; it must be 0 to"),
        ("# arrival: soon\n1 1\n0 1", "line 1: 'soon' is not a whole number"),
        ("# arrival: 1\n1 1\n0 1\n# arrival: 2", "line 4: a second '# arrival:'; the first is on line 1"),
    ],
)
def test_a_malformed_file_is_refused_by_file_line_and_value(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInstanceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {message}")
    assert "\n" not in str(caught.value)


def test_a_sum_of_times_that_no_line_shows_is_refused_by_file() -> None:
    with pytest.raises(InvalidInstanceError, match=r"here: instance 'x': all times together are"):
        parse(f"# release: {MAX_TIME}\n1 1\n0 1", "here", "x")


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    for content in (b"\x89PNG\r\n\x1a\n\xff", b"1 1\n0 1\n\x00"):
        (tmp_path / "binary.txt").write_bytes(content)
        with pytest.raises(InvalidInstanceError, match=r"binary\.txt: is not a text file"):
            read(tmp_path / "binary.txt")
    with pytest.raises(InvalidInstanceError, match=r"gone\.txt: cannot be read \(No such file or directory\)"):
        read(tmp_path / "gone.txt")
    with pytest.raises(InvalidInstanceError, match=re.escape(f"{tmp_path}: cannot be read (Is a directory)")):
        read(tmp_path)


@pytest.mark.parametrize("name", ["two\nlines", " padded", "bell\a"])
def test_a_name_that_does_not_fit_on_a_line_cannot_be_written(name: str) -> None:
    with pytest.raises(InvalidInstanceError, match="cannot be written; it must fit on one line"):
        render(Instance.from_routes(name, [[(0, 1)]]))


def test_columns_are_aligned_for_readers() -> None:
    instance = Instance.from_routes("aligned", [[(0, 5), (10, 100)], [(3, 42)]], release=[0, 7])
    assert render(instance) == "# name: aligned\n# release: 0 7\n2 11\n 0   5  10 100\n 3  42\n"
