"""Recorded transitions of a live engine: what the scheduler saw, what it ordered, what became of it. No text.

A folder of files `transitions-NNNNNNNN.npz`, each of up to `SHARD` decisions, readable with `allow_pickle=False`:

    now_s, step, free_blocks, finished     of the view, shape (decisions,)
    who, fault                             index into meta's "schedulers" and "faults" (-1: none)
    running_id, running_int, running_float requests that ran, columns as meta's "int" and "float" name them,
    waiting_id, ...                        shapes (n,), (n, ints), (n, floats); decision d owns rows ptr[d]:ptr[d + 1]
    grants (request, tokens), preempt (request, 0 recompute, 1 swap, 2 pause), drop (request), each with its ptr
    wait_until_s                           nan where the plan did not wait
    ordered                                1 where a policy gave a plan; a rule inside the engine gives none
    batch (request, start, tokens, output) what the step ran, with its ptr; one that an arrival stopped in the middle
                                           puts out nothing, and is there again whenever it goes on
    ended                                  requests that ended, as meta's "ended" names them; `ended_at`: after
                                           which decision
    meta                                   JSON

Numbers of requests are used again after a request has ended.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.policy import EngineView, Plan, RequestTable
from dispatchgym.serving.llm.seat import Seat

log = logging.getLogger(__name__)

SHARD = 256
MOST_PENDING = 4
"""Files that may wait to be written; beyond that, decisions are left out and counted."""

FORMAT = 1
_FLOATS = (
    "arrival_s", "ttft_slo_s", "tpot_slo_s", "last_token_s", "first_token_s", "queued_s", "run_s", "service_s",
)  # fmt: skip
_INTS = tuple(name for name in RequestTable._fields if name not in ("id", *_FLOATS))
_ENDED = (
    "arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "max_gap_s", "ttft_slo_s", "tpot_slo_s", "status",
    "prompt", "generated", "preemptions", "cached",
)  # fmt: skip
_HOW = {"recompute": 0, "swap": 1, "pause": 2}
_FAULTS = ("error", "late", "busy", "malformed", "benched")


class Recorder:
    """Writes transitions into a folder, in a thread, the oldest files making room for new ones.

    Attributes:
        left_out: decisions that were not written because the disk was too slow.

    Args:
        folder: made if it is not there. Files of an earlier run stay, and count.
        most_bytes: bound on the folder's transitions.
    """

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._most_bytes = most_bytes
        names = [file.stem.rpartition("-")[2] for file in self._folder.glob("transitions-*.npz")]
        self._number = max((int(name) for name in names if name.isdecimal()), default=0)
        self.left_out = 0
        self._pending: queue.Queue[dict[str, npt.NDArray[Any]] | None] = queue.Queue(MOST_PENDING)
        self._new_shard()
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def decision(self, view: EngineView, seat: Seat, rows: npt.NDArray[Any]) -> None:
        """A decision has been made on this view, and led to a step of these rows (none if it waits)."""
        loaded, plan = seat.loaded, seat.plan
        name = f"{loaded.name} {loaded.version}".strip()
        if name not in self._schedulers:
            self._schedulers.append(name)
        self._scalars.append(
            (
                view.now_s, view.step, view.free_blocks, view.finished, self._schedulers.index(name),
                _FAULTS.index(seat.last_fault) if seat.last_fault else -1, plan is not None,
                np.nan if plan is None or plan.wait_until_s is None else plan.wait_until_s,
            )
        )  # fmt: skip
        for kind, table in (("running", view.running), ("waiting", view.waiting)):
            self._tables[kind].append(table)
        self._plans.append(plan or Plan())
        self._batches.append(
            np.stack([rows[name] for name in ("request", "start", "tokens", "emitted")], axis=-1).astype(np.int32)
        )
        if len(self._scalars) == SHARD:
            self._hand_over()

    def ended(self, number: int, row: Any) -> None:
        """A request has ended; `row` is the engine's."""
        self._ended.append((number, *(float(row[name]) for name in _ENDED)))
        self._ended_at.append(len(self._scalars) - 1)

    def close(self) -> None:
        """Write what is left, and wait for it."""
        if self._scalars:
            self._hand_over()
        self._pending.put(None)
        self._thread.join()

    def _new_shard(self) -> None:
        self._schedulers: list[str] = []
        self._scalars: list[tuple[float, ...]] = []
        self._tables: dict[str, list[RequestTable]] = {"running": [], "waiting": []}
        self._plans: list[Plan] = []
        self._batches: list[npt.NDArray[np.int32]] = []
        self._ended: list[tuple[float, ...]] = []
        self._ended_at: list[int] = []

    def _hand_over(self) -> None:
        try:
            self._pending.put_nowait(self._arrays())
        except queue.Full:
            self.left_out += len(self._scalars)
            log.warning("recording: the disk is too slow; %d decisions left out so far", self.left_out)
        self._new_shard()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        columns = ("now_s", "step", "free_blocks", "finished", "who", "fault", "ordered", "wait_until_s")
        scalars = np.array(self._scalars, np.float64)
        found: dict[str, npt.NDArray[Any]] = {
            name: scalars[:, k] if name.endswith("_s") else scalars[:, k].astype(np.int64)
            for k, name in enumerate(columns)
        }
        for kind, tables in self._tables.items():
            found[f"{kind}_ptr"] = _offsets([len(table) for table in tables])
            found[f"{kind}_id"] = np.concatenate([table.id for table in tables])
            for suffix, names, dtype in (("int", _INTS, np.int64), ("float", _FLOATS, np.float64)):
                blocks = [np.stack([getattr(table, n) for n in names], axis=-1) for table in tables]
                found[f"{kind}_{suffix}"] = np.concatenate(blocks).astype(dtype)
        lists: dict[str, list[npt.NDArray[Any]]] = {
            "grants": ([np.asarray(p.grants, np.int64).reshape(-1, 2) for p in self._plans]),
            "preempt": ([np.array([(r, _HOW[h]) for r, h in p.preempt], np.int64).reshape(-1, 2) for p in self._plans]),
            "drop": ([np.asarray(p.drop, np.int64).reshape(-1) for p in self._plans]),
            "batch": self._batches,
        }
        for name, arrays in lists.items():
            found[f"{name}_ptr"] = _offsets([len(array) for array in arrays])
            found[name] = np.concatenate(arrays)
        found["ended"] = np.array(self._ended, np.float64).reshape(-1, 1 + len(_ENDED))
        found["ended_at"] = np.array(self._ended_at, np.int64)
        meta = {
            "format": FORMAT, "schedulers": self._schedulers, "faults": _FAULTS, "int": _INTS, "float": _FLOATS,
            "ended": ("request", *_ENDED), "left_out": self.left_out,
        }  # fmt: skip
        found["meta"] = np.array(json.dumps(meta))
        return found

    def _write_all(self) -> None:
        while (arrays := self._pending.get()) is not None:
            self._number += 1
            path = self._folder / f"transitions-{self._number:08d}.npz"
            try:
                with path.with_suffix(".part").open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub misses **arrays
                os.replace(path.with_suffix(".part"), path)
                self._make_room()
            except OSError:  # a full disk must not end the engine
                log.exception("recording: %s could not be written", path)

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("transitions-*.npz"))
        sizes = [file.stat().st_size for file in files]
        total = sum(sizes)
        for file, size in zip(files, sizes, strict=True):
            if total <= self._most_bytes:
                return
            file.unlink()
            total -= size


def _offsets(counts: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
