"""Request traces from files: people's own CSV, JSON and JSON lines, and the layouts of the public traces.

A layout is recognised by its column names. Whatever cannot be a request is refused with its line and column; what is
harmless is mended with a `TraceWarning`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError, UsageError
from dispatchgym.envs.llm.workload import MAX_TOKENS, Workload
from dispatchgym.envs.llm.workloads.arranged import arranged
from dispatchgym.envs.llm.workloads.arrivals import poisson

SUFFIXES = (".csv", ".jsonl", ".json")
"""Each also with .gz behind it."""

LONGEST_SPAN_S = 366 * 86400.0
"""A trace that lasts longer has its times in another unit than its column says."""

MOST_CLASSES = 1000


class TraceWarning(UserWarning):
    """Something in a trace was mended, or stands for something else than it seems."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the columns of one kind of file.

    Args:
        needed: our column -> the file's; all must be there for the layout to be recognised.
        optional: our column -> the file's, where present.
        unit_s: seconds in a unit of the arrival column; None for a wall clock.
        hash_block: tokens a prefix hash stands for, where the file does not say.
    """

    name: str
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    unit_s: float | None = 1.0
    hash_block: int = 16


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


OWN = Layout(
    "own",
    _same("arrival_s", "prompt_tokens", "output_tokens"),
    _same(
        "max_new_tokens",
        "ttft_slo_s",
        "tpot_slo_s",
        "priority",
        "tenant",
        "session",
        "program",
        "class",
        "prefix_hashes",
        "hash_block",
    ),
)

_LENGTHS = {"prompt_tokens": "input_length", "output_tokens": "output_length"}

LAYOUTS = (
    OWN,
    Layout(
        "azure",
        {"arrival_s": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
        unit_s=None,
    ),
    # Before mooncake, whose columns it has too, but in other units.
    Layout(
        "bailian",
        {"arrival_s": "timestamp", **_LENGTHS, "session": "chat_id", "class": "type"},
        {"prefix_hashes": "hash_ids"},
    ),
    Layout(
        "mooncake",
        {"arrival_s": "timestamp", **_LENGTHS},
        {"prefix_hashes": "hash_ids"},
        unit_s=1e-3,
        hash_block=512,
    ),
    Layout(
        "burstgpt",
        {"arrival_s": "Timestamp", "prompt_tokens": "Request tokens", "output_tokens": "Response tokens"},
    ),
    Layout(
        "llmservingsim",
        {"arrival_s": "arrival_time_ns", "prompt_tokens": "input_toks", "output_tokens": "output_toks"},
        unit_s=1e-9,
    ),
    Layout("vidur", {"prompt_tokens": "num_prefill_tokens", "output_tokens": "num_decode_tokens"}),
)
"""In the order in which they are tried."""


@dataclass(slots=True)
class _Table:
    """Values as they stand in a file, a list a column, with the line of each row."""

    file: Path
    columns: dict[str, list[Any]]
    line: list[int]

    def refuse(self, row: int, column: str, why: str) -> InvalidInstanceError:
        value = self.columns[column][row]
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:50]}..."
        return InvalidInstanceError(f"{self.file}, line {self.line[row]}, column {column}: {shown} {why}")


def read(file: Path, *, rate_per_s: float | None = None, seed: int = 0, spread: bool | None = None) -> Workload:
    """The requests of a file, sorted by arrival, the first at 0 s.

    Args:
        file: .csv, .json (a list of objects) or .jsonl, each also with .gz.
        rate_per_s: Poisson arrivals at this rate for a file without arrival times; refused for others.
        seed: of the arrivals drawn, and of the spread.
        spread: spread requests with the same time evenly at random until the next time; None does it where times are
            plainly rounded (fewer different times than half the requests, and more than ten).

    Raises:
        InvalidInstanceError: naming the file, the line and the column. UsageError: what cannot be done with this file.
    """
    table = _table(file)
    layout = _layout(table)
    names = {**layout.needed, **{ours: theirs for ours, theirs in layout.optional.items() if theirs in table.columns}}
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7261]))
    prompt = _whole(table, names["prompt_tokens"], 1, MAX_TOKENS)
    output = _whole(table, names["output_tokens"], 1, MAX_TOKENS)
    if "arrival_s" in names:
        if rate_per_s is not None:
            raise UsageError(f"{file} has arrival times of its own; scale them instead of giving a rate")
        arrival = _times(table, names["arrival_s"], layout.unit_s)
        arrival = _spread(file, arrival, rng, spread)
    else:
        if rate_per_s is None:
            raise UsageError(f"{file} has lengths but no arrival times; give a rate (requests a second)")
        arrival = poisson(rng, len(prompt), rate_per_s)
    columns: dict[str, Any] = {}
    for name, low, high in (("max_new_tokens", 1, MAX_TOKENS), ("priority", -(2**31), 2**31 - 1)):
        if name in names:
            columns[name] = _whole(table, names[name], low, high, blank=0)
    if "max_new_tokens" not in names:
        columns["max_new_tokens"] = np.full(len(output), usual_cap(output), np.int64)
    else:
        given = columns["max_new_tokens"]
        given[given == 0] = usual_cap(output)
        if (short := np.flatnonzero(output > given)).size:
            raise table.refuse(int(short[0]), names["max_new_tokens"], f"is below the {output[short[0]]} output tokens")
    for name in ("ttft_slo_s", "tpot_slo_s"):
        if name in names:
            columns[name] = _slo(table, names[name])
    for name, none in (("tenant", 0), ("session", -1), ("program", -1)):
        if name in names:
            columns[name] = _labels(table.columns[names[name]], none)
    if "class" in names:
        columns["class_id"], columns["class_names"] = _classes(table, names["class"])
    if "prefix_hashes" in names:
        block = _hash_block(table, names.get("hash_block"), layout.hash_block)
        columns |= _hashes(table, names["prefix_hashes"], block, prompt)
    name = file.name.removesuffix(".gz").rpartition(".")[0]
    return arranged(arrival, prompt, output, name=name, **columns)


def is_trace(file: Path) -> bool:
    """Whether a file looks like a trace of requests, by its suffix and its first line alone."""
    if not file.is_file() or not file.name.removesuffix(".gz").endswith(SUFFIXES):
        return False
    try:
        with _opened(file) as lines:
            first = lines.readline(1 << 16)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error):
        return False
    if not file.name.removesuffix(".gz").endswith(".csv"):
        return first.lstrip().startswith("[") or file.name.removesuffix(".gz").endswith(".jsonl")
    header = {name.strip() for name in first.split(",")}
    return any(layout.needed["prompt_tokens"] in header for layout in LAYOUTS)


def usual_cap(output: npt.NDArray[Any]) -> int:
    """What a service would allow every client when a trace does not say: the power of two that holds all outputs."""
    return 1 << (max(int(output.max()), 1) - 1).bit_length()


def _table(file: Path) -> _Table:
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{file} is no trace by its name; it must end in {', '.join(SUFFIXES)}, or .gz behind these")
    try:
        with _opened(file) as lines:
            table = _READERS[suffix](file, lines)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error, RecursionError) as error:
        raise InvalidInstanceError(f"{file} cannot be read as {suffix[1:]}: {error}") from error
    if not table.line:
        raise InvalidInstanceError(f"{file} has no requests in it")
    return table


def _opened(file: Path) -> TextIO:
    if file.name.endswith(".gz"):
        return io.TextIOWrapper(gzip.open(file, "rb"), encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _read_csv(file: Path, lines: TextIO) -> _Table:
    rows = csv.reader(lines)
    header = [name.strip() for name in next(rows, [])]
    if twice := {name for name in header if header.count(name) > 1}:
        raise InvalidInstanceError(f"{file} has the column {min(twice)!r} twice")
    found: list[list[str]] = []
    line: list[int] = []
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise InvalidInstanceError(
                f"{file}, line {rows.line_num}: {len(row)} values for {len(header)} columns ({', '.join(header)})"
            )
        found.append(row)
        line.append(rows.line_num)
    columns = dict(zip(header, map(list, zip(*found, strict=True)), strict=True)) if found else {}
    return _Table(file, columns, line)


def _read_jsonl(file: Path, lines: TextIO) -> _Table:
    def rows() -> Iterator[tuple[int, Any]]:
        for number, text in enumerate(lines, 1):
            if text.strip():
                try:
                    yield number, json.loads(text)
                except ValueError as error:
                    raise InvalidInstanceError(f"{file}, line {number}: is not JSON ({error})") from error

    return _of_objects(file, rows())


def _read_json(file: Path, lines: TextIO) -> _Table:
    try:
        content = json.load(lines)
    except ValueError as error:
        raise InvalidInstanceError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise InvalidInstanceError(f"{file} holds no list; a JSON trace is a list of objects, one a request")
    return _of_objects(file, enumerate(content, 1))


_READERS: Mapping[str, Callable[[Path, TextIO], _Table]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}


def _of_objects(file: Path, rows: Iterable[tuple[int, Any]]) -> _Table:
    columns: dict[str, list[Any]] = {}
    line: list[int] = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise InvalidInstanceError(f"{file}, line {number}: is no object with a request's columns")
        for name in row:
            if name not in columns:
                columns[name] = [None] * len(line)
        for name, values in columns.items():
            values.append(row.get(name))
        line.append(number)
    return _Table(file, columns, line)


def _layout(table: _Table) -> Layout:
    for layout in LAYOUTS:
        if all(name in table.columns for name in layout.needed.values()):
            return layout
    # The layout that fits best tells what is missing; a tie goes to our own.
    near = max(LAYOUTS, key=lambda each: sum(name in table.columns for name in each.needed.values()) / len(each.needed))
    missing = [name for name in near.needed.values() if name not in table.columns]
    raise InvalidInstanceError(
        f"{table.file}: there is no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. A trace needs "
        f"{', '.join(OWN.needed)}, or the columns of a public trace"
    )


def _number(value: Any) -> float:
    """The value as a number; nan for what is none."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _whole(table: _Table, column: str, low: int, high: int, *, blank: int | None = None) -> npt.NDArray[np.int64]:
    """Whole numbers from `low` to `high`; `blank` stands for an empty value, which is refused without one."""
    values = table.columns[column]
    numbers = np.array([_number(value) for value in values])
    if blank is not None:
        empty = np.array([value in (None, "") for value in values])
        numbers[empty] = max(blank, low)
    wrong = ~((numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers)))
    if wrong.any():
        raise table.refuse(int(np.argmax(wrong)), column, f"is not a whole number from {low} to {high}")
    whole = numbers.astype(np.int64)
    if blank is not None:
        whole[empty] = blank
    return whole


def _times(table: _Table, column: str, unit_s: float | None) -> npt.NDArray[np.float64]:
    """Seconds since the first request."""
    if unit_s is None:
        times = np.array([_wall_clock_s(value) for value in table.columns[column]])
        why = "is not a time such as 2023-11-16 18:15:46.68"
    else:
        # Subtracted before scaling: epoch nanoseconds lose nothing that way.
        times, why = np.array([_number(value) for value in table.columns[column]]), "is not a finite number"
    if (wrong := ~np.isfinite(times)).any():
        raise table.refuse(int(np.argmax(wrong)), column, why)
    since = (times - times.min()) * (unit_s or 1.0)
    if since.max() > LONGEST_SPAN_S:
        raise table.refuse(
            int(since.argmax()), column, f"is {since.max() / 86400:.0f} days after the first; is it in another unit?"
        )
    back = np.flatnonzero(np.diff(since) < 0)
    if back.size:
        warnings.warn(
            f"{table.file}: requests are not in order of arrival (line {table.line[int(back[0]) + 1]}); sorted",
            TraceWarning,
            stacklevel=4,
        )
    return np.asarray(since, np.float64)


def _wall_clock_s(value: Any) -> float:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return math.nan
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _spread(
    file: Path, arrival_s: npt.NDArray[np.float64], rng: np.random.Generator, spread: bool | None
) -> npt.NDArray[np.float64]:
    """Requests of one rounded time evenly at random over the time until the next."""
    edges = np.unique(arrival_s)
    if spread is None:
        spread = 10 < len(edges) < len(arrival_s) / 2
        if spread:
            warnings.warn(
                f"{file}: {len(arrival_s)} requests share {len(edges)} times; each was spread at random until the next",
                TraceWarning,
                stacklevel=4,
            )
    if not spread or len(edges) < 2:
        return arrival_s
    width = np.diff(edges)
    bucket = np.searchsorted(edges, arrival_s)
    moved: npt.NDArray[np.float64] = arrival_s + rng.random(len(bucket)) * np.append(width, np.median(width))[bucket]
    return moved


def _slo(table: _Table, column: str) -> npt.NDArray[np.float64]:
    values = table.columns[column]
    times = np.array([np.inf if value in (None, "") else _number(value) for value in values])
    if (wrong := ~(times > 0)).any():
        raise table.refuse(int(np.argmax(wrong)), column, "is not a time in seconds above 0 (empty for none)")
    return times


def _labels(values: Sequence[Any], none: int) -> npt.NDArray[np.int64]:
    """Small numbers for labels of any kind, in order of appearance; `none` for an empty one."""
    known: dict[str, int] = {}
    return np.array([none if v in (None, "") else known.setdefault(str(v), len(known)) for v in values], np.int64)


def _classes(table: _Table, column: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    names = ["other" if value in (None, "") else str(value) for value in table.columns[column]]
    known = tuple(dict.fromkeys(names))
    if len(known) > MOST_CLASSES:
        raise InvalidInstanceError(
            f"{table.file}: column {column} has {len(known)} different values; classes are few, at most {MOST_CLASSES}"
        )
    return _labels(names, 0), known


def _hash_block(table: _Table, column: str | None, usual: int) -> int:
    if column is None:
        return usual
    blocks = _whole(table, column, 1, MAX_TOKENS, blank=usual)
    if (other := blocks != blocks[0]).any():
        raise table.refuse(int(np.argmax(other)), column, f"differs from the {blocks[0]} above; one size a file")
    return int(blocks[0])


def _hashes(table: _Table, column: str, block: int, prompt: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Ragged numbers for the hashes of whole blocks of the prompt; a last block that is not full is left out."""
    known: dict[str, int] = {}
    hashes: list[int] = []
    ptr = [0]
    for row, value in enumerate(table.columns[column]):
        listed = value if isinstance(value, list) else str("" if value is None else value).split()
        most = -(-int(prompt[row]) // block)
        if len(listed) > most:
            raise table.refuse(row, column, f"has {len(listed)} hashes; {prompt[row]} tokens are {most} of {block}")
        hashes += [known.setdefault(str(each), len(known)) for each in listed[: int(prompt[row]) // block]]
        ptr.append(len(hashes))
    return {"hash_ptr": np.array(ptr), "hashes": np.array(hashes, np.int64), "hash_block": block}
