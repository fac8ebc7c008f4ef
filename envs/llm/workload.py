"""A workload: the requests that come to an LLM engine, in order of arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError

I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

MAX_TOKENS = 2**24
"""Longest prompt and longest output: beyond any model's context, and sums over a trace stay exact."""

_COLUMNS: dict[str, tuple[Any, float | None]] = {  # dtype, default
    "arrival_s": (np.float64, None),
    "prompt_tokens": (np.int32, None),
    "output_tokens": (np.int32, None),
    "max_new_tokens": (np.int32, None),
    "ttft_slo_s": (np.float64, np.inf),
    "tpot_slo_s": (np.float64, np.inf),
    "priority": (np.int32, 0),
    "tenant": (np.int32, 0),
    "session": (np.int32, -1),
    "program": (np.int32, -1),
    "class_id": (np.int16, 0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests as columns, sorted by arrival; row i is request i. n is their number.

    Columns left out get the default in brackets. Arrays are kept read-only.

    Attributes:
        arrival_s: seconds since the start, rising, shape (n,).
        prompt_tokens: tokens of the prompt, at least 1, shape (n,).
        output_tokens: true number of output tokens, at least 1 and at most `max_new_tokens`: the engine's secret,
            shape (n,).
        max_new_tokens: what the client allows [`output_tokens`, which then is no secret], shape (n,).
        ttft_slo_s: bound on the time to the first token, inf for none [inf].
        tpot_slo_s: bound on the time per output token after the first, inf for none [inf].
        slo_kind: what `tpot_slo_s` bounds: "max" is the longest gap between two tokens, "mean" the mean one.
        priority: smaller goes first where a scheduler looks at it [0].
        tenant: whose request, for fairness [0].
        session: turns of one conversation share it, -1 for none [-1].
        program: calls of one agent program share it, -1 for none [-1].
        hash_ptr: request i owns hashes[hash_ptr[i]:hash_ptr[i + 1]], shape (n + 1,) [no hashes].
        hashes: one a block of `hash_block` tokens. A hash names its block and all before it, so equal hashes at the
            same place mean equal text up to there. Hashes that run past the prompt name the request's output, so
            that the next turn of a conversation can find it.
        hash_block: tokens a hash stands for.
        class_id: index into `class_names` [0].
        class_names: what reports call the classes of requests.
        name: what reports call the workload.

    Raises:
        InvalidInstanceError: a column of the wrong length, or a value that cannot be; names row and column.
    """

    arrival_s: F64
    prompt_tokens: I32
    output_tokens: I32
    max_new_tokens: I32 = None  # type: ignore[assignment]
    ttft_slo_s: F64 = None  # type: ignore[assignment]
    tpot_slo_s: F64 = None  # type: ignore[assignment]
    slo_kind: Literal["max", "mean"] = "max"
    priority: I32 = None  # type: ignore[assignment]
    tenant: I32 = None  # type: ignore[assignment]
    session: I32 = None  # type: ignore[assignment]
    program: I32 = None  # type: ignore[assignment]
    hash_ptr: I64 = None  # type: ignore[assignment]
    hashes: I64 = None  # type: ignore[assignment]
    hash_block: int = 16
    class_id: I16 = None  # type: ignore[assignment]
    class_names: tuple[str, ...] = ("all",)
    name: str = "workload"

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for name, (dtype, default) in _COLUMNS.items():
            given = getattr(self, name)
            if given is None and name == "max_new_tokens":
                given = self.output_tokens
            column = np.full(n, default, dtype) if given is None else _as_column(self.name, name, given, dtype)
            if column.shape != (n,):
                raise InvalidInstanceError(
                    f"workload {self.name!r}: column {name} has shape {column.shape}, not ({n},) as arrival_s"
                )
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        for name, empty in (("hash_ptr", np.zeros(n + 1, np.int64)), ("hashes", np.zeros(0, np.int64))):
            given = getattr(self, name)
            array = empty if given is None else _as_column(self.name, name, given, np.int64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.slo_kind not in ("max", "mean"):
            raise InvalidInstanceError(
                f"workload {self.name!r}: slo_kind {self.slo_kind!r} is neither 'max' nor 'mean'"
            )
        self._check_values()
        self._check_hashes()

    def _check_values(self) -> None:
        self._refuse("arrival_s", ~np.isfinite(self.arrival_s) | (self.arrival_s < 0), "is not a time >= 0")
        self._refuse("arrival_s", np.diff(self.arrival_s, prepend=0.0) < 0, "is before the row above; sort the rows")
        for name in ("prompt_tokens", "output_tokens", "max_new_tokens"):
            column = getattr(self, name)
            self._refuse(name, (column < 1) | (column > MAX_TOKENS), f"is outside 1..{MAX_TOKENS}")
        self._refuse("output_tokens", self.output_tokens > self.max_new_tokens, "is above max_new_tokens")
        for name in ("ttft_slo_s", "tpot_slo_s"):
            self._refuse(name, ~(getattr(self, name) > 0), "is not a time > 0 (inf for no bound)")
        wrong = (self.class_id < 0) | (self.class_id >= len(self.class_names))
        self._refuse("class_id", wrong, f"is outside 0..{len(self.class_names) - 1}, the classes named")

    def _check_hashes(self) -> None:
        if self.hash_block < 1:
            raise InvalidInstanceError(f"workload {self.name!r}: hash_block {self.hash_block} is below 1")
        if self.hash_ptr.shape != (len(self) + 1,) or self.hash_ptr[0] != 0 or self.hash_ptr[-1] != len(self.hashes):
            raise InvalidInstanceError(
                f"workload {self.name!r}: hash_ptr must have n + 1 = {len(self) + 1} entries "
                f"from 0 to len(hashes) = {len(self.hashes)}"
            )
        count = np.diff(self.hash_ptr)
        longest = -(-(self.prompt_tokens.astype(np.int64) + self.output_tokens) // self.hash_block)
        self._refuse("hash_ptr", count < 0, "has fewer than 0 hashes", count)
        self._refuse("hash_ptr", count > longest, "hashes are more than prompt and output hold", count)

    def _refuse(self, name: str, wrong: npt.NDArray[np.bool_], why: str, values: Any = None) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            value = (getattr(self, name) if values is None else values)[row]
            raise InvalidInstanceError(f"workload {self.name!r}: row {row}: {name} {value} {why}")

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> Workload:
        """These rows, given in order of arrival."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        count = np.diff(self.hash_ptr)[rows]
        ptr = np.concatenate([[0], np.cumsum(count)])
        where = np.repeat(self.hash_ptr[rows] - ptr[:-1], count) + np.arange(ptr[-1])
        return Workload(
            **columns,
            slo_kind=self.slo_kind,
            hash_ptr=ptr,
            hashes=self.hashes[where],
            hash_block=self.hash_block,
            class_names=self.class_names,
            name=self.name,
        )


def _as_column(workload: str, name: str, given: Any, dtype: Any) -> npt.NDArray[Any]:
    """A fresh array of `dtype` with the same values; refuses what would be changed by the conversion."""
    try:
        source = np.asarray(given)
        if source.dtype.kind not in "biuf":
            source = source.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInstanceError(f"workload {workload!r}: column {name} is not numeric: {error}") from None
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        wrong = ~np.isfinite(source) | (source != np.floor(source)) | (source < info.min) | (source > info.max)
        if wrong.any():
            row = int(np.argmax(wrong))
            value = source[row]
            raise InvalidInstanceError(
                f"workload {workload!r}: row {row}: {name} {value} is not a whole number within {dtype.__name__}"
            )
    return np.array(source, dtype=dtype)
