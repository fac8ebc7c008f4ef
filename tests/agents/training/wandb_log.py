"""Reads what wandb wrote offline: an independent reader of its log file, which `wandb sync` would upload."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32_768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(log: Path) -> list[Record]:
    """All records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    data = log.read_bytes()
    assert data[:4] == b":W&B"
    found, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # too short for a header: zeros up to the next block
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        parts = data[at + 7 : at + 7 + length] if kind in (FULL, FIRST) else parts + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            found.append(record)
    return found


def logs(run: Path) -> list[Path]:
    """The log files of a run directory, one a session, the oldest first."""
    return sorted((run / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def history(log: Path) -> list[dict[str, Any]]:
    """The logged rows, wandb's own entries included."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(log)
        if record.WhichOneof("record_type") == "history"
    ]


def names(run: Path) -> set[str]:
    """Every name that a run has logged something under."""
    return {name for log in logs(run) for row in history(log) for name in row if not name.startswith("_")}


def artifacts(log: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(name, type, files) of every artifact."""
    for record in records(log):
        if record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
        elif record.WhichOneof("record_type") == "artifact":
            artifact = record.artifact
        else:
            continue
        yield artifact.name, artifact.type, [entry.path for entry in artifact.manifest.contents]
