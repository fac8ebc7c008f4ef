"""The standard text format of job-shop instances, read and written.

The first line of numbers holds the counts of jobs and machines, then comes one line a job: pairs of
machine (from 0) and duration in route order. Jobs may differ in length and visit a machine twice.

    # ft06 cut to two jobs
    2 6
    2 1  0 3  1 6  3 7  5 3  4 6
    1 8  2 5  4 10

Blank lines are skipped and `#` begins a comment. Lines before the counts that begin with neither a
digit nor a sign and a digit are taken as the description that many published files carry. Three
comments mean something, so that every instance can be written and read again:

    # name: two-jobs          (default: the file's name without its ending)
    # release: 0 12           (one time a job; default 0)
    # arrival: 0 7
"""

from __future__ import annotations

import re
from itertools import pairwise
from os import PathLike
from pathlib import Path

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.jobshop.instance import MAX_MACHINES, MAX_TIME, Instance

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DATA_LINE = re.compile(r"[+-]?[0-9]", re.ASCII)
_DIRECTIVE = re.compile(r"\s*(name|release|arrival)\s*:(.*)", re.ASCII)


def read(path: str | PathLike[str]) -> Instance:
    """The instance in the file `path`.

    Raises:
        InvalidInstanceError: naming the file, the line and the value that cannot be.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInstanceError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidInstanceError(f"{path}: is not a text file (byte {error.start} is not UTF-8)") from error
    return parse(text, str(path), path.stem)


def write(instance: Instance, path: str | PathLike[str]) -> None:
    """Write `instance` so that `read` gives it back, name included."""
    Path(path).write_text(render(instance), encoding="utf-8")


def parse(text: str, origin: str, name: str) -> Instance:
    """The instance in `text`; `origin` is what messages call the text, `name` the name when it states none.

    Raises:
        InvalidInstanceError: naming the origin, the line and the value that cannot be.
    """
    if "\0" in text:
        raise InvalidInstanceError(f"{origin}: is not a text file (it holds a zero byte)")
    counts: tuple[int, int] | None = None
    counts_line = 0
    routes: list[list[tuple[int, int]]] = []
    stated: dict[str, tuple[int, str]] = {}
    total = 0

    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{origin}, line {number}"
        data, _, comment = line.partition("#")
        directive = _DIRECTIVE.fullmatch(comment.rstrip()) if not data.strip() else None
        if directive:
            key, value = directive.group(1), directive.group(2).strip()
            if key in stated:
                raise InvalidInstanceError(f"{where}: a second '# {key}:'; the first is on line {stated[key][0]}")
            stated[key] = number, value
        elif not data.strip() or (counts is None and not _DATA_LINE.match(data.strip())):
            continue
        elif counts is None:
            counts, counts_line = _counts(data, where), number
        elif len(routes) == counts[0]:
            raise InvalidInstanceError(
                f"{where}: one job more than the {counts[0]} that line {counts_line} promises: {data.strip()!r:.60}"
            )
        else:
            routes.append(_route(data, counts[1], where))
            total += sum(duration for _, duration in routes[-1])
            if total > MAX_TIME:
                raise InvalidInstanceError(f"{where}: the durations up to here add up to {total}, more than {MAX_TIME}")

    if counts is None:
        raise InvalidInstanceError(f"{where}: the file ends without the counts of jobs and machines")
    if len(routes) < counts[0]:
        raise InvalidInstanceError(
            f"{where}: the file ends after {len(routes)} of the {counts[0]} jobs that line {counts_line} promises "
            "(a blank line is no job)"
        )
    times = {key: _times(key, stated, counts[0], origin) for key in ("release", "arrival")}
    if "name" in stated:
        name = stated["name"][1]
    try:
        return Instance.from_routes(name, routes, counts[1], **times)
    except InvalidInstanceError as error:  # what no single line shows: a sum that is too large
        raise InvalidInstanceError(f"{origin}: {error}") from error


def render(instance: Instance) -> str:
    """`instance` in the standard text format.

    Raises:
        InvalidInstanceError: a name that does not fit on a line of its own.
    """
    if instance.name != instance.name.strip() or not instance.name.isprintable():
        raise InvalidInstanceError(f"instance name {instance.name!r} cannot be written; it must fit on one line")
    lines = [f"# name: {instance.name}"]
    for key in ("release", "arrival"):
        times = getattr(instance, key)
        if times.any():
            lines.append(f"# {key}: {' '.join(map(str, times.tolist()))}")
    lines.append(f"{instance.num_jobs} {instance.num_machines}")
    wide_machine = len(str(instance.num_machines - 1))
    wide_duration = len(str(instance.duration.max()))
    pairs = [
        f"{m:{wide_machine}} {d:{wide_duration}}"
        for m, d in zip(instance.machine.tolist(), instance.duration.tolist(), strict=True)
    ]
    lines += ["  ".join(pairs[begin:end]) for begin, end in pairwise(instance.job_ptr.tolist())]
    return "\n".join(lines) + "\n"


def _counts(data: str, where: str) -> tuple[int, int]:
    values = _numbers(data, where)
    if len(values) != 2:
        raise InvalidInstanceError(
            f"{where}: expected the counts of jobs and machines, two numbers, got {len(values)}: {data.strip()!r:.60}"
        )
    jobs, machines = values
    if jobs < 1:
        raise InvalidInstanceError(f"{where}: {jobs} jobs; an instance needs at least one")
    if not 1 <= machines <= MAX_MACHINES:
        raise InvalidInstanceError(f"{where}: {machines} machines; a shop has 1 to {MAX_MACHINES}")
    return jobs, machines


def _route(data: str, num_machines: int, where: str) -> list[tuple[int, int]]:
    values = _numbers(data, where)
    if len(values) % 2:
        raise InvalidInstanceError(f"{where}: {len(values)} numbers; a job is pairs of machine and duration")
    route = list(zip(values[::2], values[1::2], strict=True))
    for machine, duration in route:
        if not 0 <= machine < num_machines:
            raise InvalidInstanceError(
                f"{where}: machine {machine} is not known; machines are 0 to {num_machines - 1}, counted from 0"
            )
        if not 0 <= duration <= MAX_TIME:
            raise InvalidInstanceError(f"{where}: duration {duration} on machine {machine}; it must be 0 to {MAX_TIME}")
    return route


def _times(key: str, stated: dict[str, tuple[int, str]], num_jobs: int, origin: str) -> list[int]:
    """The release or arrival times that a comment states, none if it is absent."""
    if key not in stated:
        return []
    number, value = stated[key]
    where = f"{origin}, line {number}"
    times = _numbers(value, where)
    if len(times) != num_jobs:
        raise InvalidInstanceError(f"{where}: {len(times)} {key} times for {num_jobs} jobs")
    for job, time in enumerate(times):
        if not 0 <= time <= MAX_TIME:
            raise InvalidInstanceError(f"{where}: job {job} has {key} time {time}; it must be 0 to {MAX_TIME}")
    return times


def _numbers(data: str, where: str) -> list[int]:
    values = []
    for token in data.split():
        if not _NUMBER.fullmatch(token):
            long = token.lstrip("+-").isdecimal() and token.isascii()
            what = "is too large a number" if long else "is not a whole number"
            raise InvalidInstanceError(f"{where}: {token!r:.40} {what}")
        values.append(int(token))
    return values
