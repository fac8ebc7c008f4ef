"""A latency profile: how long a step takes on one kind of GPU with one model, and how much KV fits beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.llm.state import COST_TERMS, MOST_SIZES
from dispatchgym.envs.registry import unknown_name

PROFILES = Path(__file__).parent / "profiles"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Decoding:
    """Coefficients of a step in which everyone decodes one token, where engines capture such steps and others not:

    base + max(weights, token * rows run) + row * requests + context * read + spread * sqrt(read)

    The last term: the fewer tokens attention reads, the worse it fills the device.
    """

    base_s: float
    weights_s: float
    token_s: float
    row_s: float
    context_s: float
    spread_s: float


@dataclass(frozen=True, slots=True)
class Captured:
    """Coefficients, of the same names as a profile's, of steps that are captured though they do more than decode.

    Such a step costs the host a single launch, and runs as many tokens as the next of `sizes` (rising, at most 64);
    with more tokens than the last it is not captured. It runs through, though it be told to stop: op by op it would
    hardly have begun.
    """

    sizes: tuple[int, ...]
    base_s: float
    weights_s: float
    token_s: float
    row_s: float = 0.0
    pair_s: float = 0.0
    context_s: float = 0.0
    chunk_s: float = 0.0
    mixed_s: float = 0.0
    lead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Coefficients of the step time

        base + max(weights, token * positions) + row * requests + pair * pairs + context * read
        + chunk * prompt pieces + mixed (if prompt pieces and decoding share the step),
        but at least host (plus host_mixed, if they share it), and less by what the host does of it while a step of
        decoding alone before still runs: up to lead of the device's time, all of host's; for steps that decode alone
        see `decoding`, for others that run few tokens `captured`
        + rebuild (unless told to keep the members of the step before) + swapped bytes / swap_bytes_per_s
        + ragged * read (if decoding requests that verify drafts hold different numbers of tokens)

    `positions` are all tokens run; a step of decoding alone runs as many rows as the next size of `graph_sizes`.
    `pairs` are the (query, key) pairs inside prompt pieces, `read` the tokens whose KV attention reads. A request that
    verifies a draft counts among the pieces.

    Attributes:
        name, gpu, model: what it is for.
        source: "roofline" (computed from bandwidth and peak), or "measured".
        fit: how good it is: quantity -> value, as printed by the calibration.
        kv_tokens: tokens that fit into the KV pool.
        kv_bytes_per_token: bytes that swapping moves for a token.
        host_s, host_mixed_s: that the host needs to launch a step that is not captured, beside the device.
        lead_s: that the host needs before the device can begin with such a step.
        decoding: of steps that decode one token a request; None if they cost as others do.
        captured: of other steps that are captured; None if none is.
        segments: places at which a forward pass can be interrupted (after attention and MLP of each layer).
        pause_s: cost of interrupting.
    """

    name: str
    gpu: str
    model: str
    source: str
    kv_tokens: int
    kv_bytes_per_token: int
    segments: int
    base_s: float
    weights_s: float
    token_s: float
    row_s: float = 0.0
    pair_s: float = 0.0
    context_s: float = 0.0
    chunk_s: float = 0.0
    mixed_s: float = 0.0
    rebuild_s: float = 0.0
    ragged_s: float = 0.0
    swap_bytes_per_s: float = 50e9
    pause_s: float = 0.0
    host_s: float = 0.0
    host_mixed_s: float = 0.0
    lead_s: float = 0.0
    decoding: Decoding | None = None
    captured: Captured | None = None
    graph_sizes: tuple[int, ...] = ()
    fit: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        times = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("decoding", "captured"):
            if (part := getattr(self, name)) is not None:
                times |= {f"{name}.{term}": value for term, value in asdict(part).items()}
        for name, value in times.items():
            if name.endswith("_s") and not (np.isfinite(value) and value >= 0):
                raise InvalidInstanceError(f"profile {self.name!r}: {name} {value} is not a time >= 0")
        if self.base_s + self.weights_s <= 0:
            raise InvalidInstanceError(
                f"profile {self.name!r}: base_s + weights_s must be above 0, or time stands still"
            )
        for name in ("kv_tokens", "kv_bytes_per_token", "segments", "swap_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise InvalidInstanceError(f"profile {self.name!r}: {name} {getattr(self, name)} is not above 0")
        self._check_sizes("graph_sizes", self.graph_sizes)
        if self.captured is not None:
            self._check_sizes("captured.sizes", self.captured.sizes)
            if not 1 <= len(self.captured.sizes) <= MOST_SIZES:
                raise InvalidInstanceError(
                    f"profile {self.name!r}: captured.sizes has {len(self.captured.sizes)} sizes, not 1 to {MOST_SIZES}"
                )

    def _check_sizes(self, name: str, sizes: tuple[int, ...]) -> None:
        if list(sizes) != sorted(set(sizes)) or any(size < 1 for size in sizes):
            raise InvalidInstanceError(f"profile {self.name!r}: {name} must rise from 1 or more")

    @property
    def plain_decoding(self) -> Decoding:
        """Of steps that decode one token a request."""
        if self.decoding is not None:
            return self.decoding
        return Decoding(self.base_s, self.weights_s, self.token_s, self.row_s, self.context_s, 0.0)

    def of_pass(self, tokens: int) -> tuple[Profile | Captured, int]:
        """The coefficients of a step that does more than decode and has so many tokens, and how many it runs."""
        if self.captured is None or tokens > self.captured.sizes[-1]:
            return self, tokens
        return self.captured, next(size for size in self.captured.sizes if size >= tokens)

    def scaled(self, factor: float) -> Profile:
        """Of an engine all of whose steps take so many times as long, swapping and pausing apart."""

        def times(part: Profile | Decoding | Captured) -> dict[str, Any]:
            names = (each.name for each in fields(part) if each.name.endswith("_s"))
            return {name: factor * getattr(part, name) for name in names if name not in ("swap_bytes_per_s", "pause_s")}

        decoding = self.decoding and replace(self.decoding, **times(self.decoding))
        captured = self.captured and replace(self.captured, **times(self.captured))
        return replace(self, **times(self), decoding=decoding, captured=captured)

    def terms(self) -> npt.NDArray[np.float64]:
        """The coefficients in the order that the kernels read, shape (COST_TERMS,)."""
        d, c = self.plain_decoding, self.captured
        sizes = c.sizes if c is not None else ()
        terms = np.array(
            [
                self.base_s, self.weights_s, self.token_s, self.row_s, self.pair_s, self.context_s,
                self.chunk_s, self.mixed_s, self.rebuild_s, 1.0 / self.swap_bytes_per_s, self.ragged_s,
                self.host_s, self.host_mixed_s, self.lead_s,
                d.base_s, d.weights_s, d.token_s, d.row_s, d.context_s, d.spread_s,
                *(
                    (c.base_s, c.weights_s, c.token_s, c.row_s, c.pair_s, c.context_s, c.chunk_s, c.mixed_s, c.lead_s)
                    if c is not None
                    else [0.0] * 9
                ),
                sizes[-1] if sizes else 0.0, *sizes, *[np.inf] * (MOST_SIZES - len(sizes)),
            ]
        )  # fmt: skip
        assert terms.shape == (COST_TERMS,)
        return terms

    def padding(self, rows: int) -> npt.NDArray[np.int32]:
        """Rows that a decode step of b requests runs, for b = 0 .. rows; shape (rows + 1,), read-only."""
        return _padding(self.graph_sizes, rows)


@lru_cache(maxsize=64)
def _padding(graph_sizes: tuple[int, ...], rows: int) -> npt.NDArray[np.int32]:
    """See Profile; schedulers read it at every step."""
    wanted = np.arange(rows + 1, dtype=np.int32)
    found = wanted
    if graph_sizes:
        sizes = np.asarray(graph_sizes, np.int32)
        place = np.searchsorted(sizes, wanted)
        padded = np.where(place < len(sizes), sizes[np.minimum(place, len(sizes) - 1)], wanted)
        found = np.where(wanted == 0, 0, padded).astype(np.int32)
    found.flags.writeable = False
    return found


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(file.stem for file in PROFILES.glob("*.json"))


def load_profile(name: str | Path) -> Profile:
    """A profile by name, or from a JSON file.

    Raises:
        UnknownNameError: neither a file nor a profile that ships with the package.
        InvalidInstanceError: a file that does not hold a profile.
    """
    file = Path(name)
    if file.suffix != ".json":
        file = PROFILES / f"{name}.json"
        if not file.exists():
            raise unknown_name("profile", str(name), profile_names())
    try:
        data: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInstanceError(f"profile {file}: {error}") from None
    if data.pop("format", None) != FORMAT:
        raise InvalidInstanceError(f"profile {file}: not of format {FORMAT}; write it again with this version")
    return profile_of(data, f"profile {file}")


def profile_of(data: dict[str, Any], what: str) -> Profile:
    """A profile from the fields that its file has.

    Raises:
        InvalidInstanceError: `what` names the file: a field is missing, unknown, or out of its range.
    """
    known = {f.name for f in fields(Profile)}
    if extra := sorted(set(data) - known - {"note"}):
        raise InvalidInstanceError(f"{what}: unknown key {extra[0]!r}")
    data = {name: value for name, value in data.items() if name != "note"}
    data["graph_sizes"] = tuple(data.get("graph_sizes", ()))
    try:
        if data.get("decoding") is not None:
            data["decoding"] = Decoding(**data["decoding"])
        if data.get("captured") is not None:
            data["captured"] = Captured(**{**data["captured"], "sizes": tuple(data["captured"].get("sizes", ()))})
        return Profile(**data)
    except TypeError as error:
        raise InvalidInstanceError(f"{what}: {error}") from None


def roofline(
    name: str, *, model: str, gpu: str, weight_bytes: float, layers: int, hidden: int, kv_bytes_per_token: int,
    kv_tokens: int, bytes_per_s: float, flops_per_s: float,
) -> Profile:  # fmt: skip
    """A profile from bandwidth and peak alone: linear layers at 85 % of either, attention reads at 95 % of bandwidth.

    Fixed cost of 0.5 ms a step; graphs as serving engines capture them (powers of two, then every 16). Attention
    over prompt pieces runs at half of peak.
    """
    parameters = weight_bytes / 2
    sizes = (1, 2, 4, 8, *range(16, 257, 16), *range(288, 513, 32), *range(576, 1025, 64))
    return Profile(
        name=name, gpu=gpu, model=model, source="roofline", kv_tokens=kv_tokens, kv_bytes_per_token=kv_bytes_per_token,
        segments=2 * layers, base_s=0.5e-3, weights_s=weight_bytes / bytes_per_s / 0.85,
        token_s=2 * parameters / flops_per_s / 0.85, pair_s=4 * hidden * layers / flops_per_s / 0.5,
        context_s=kv_bytes_per_token / bytes_per_s / 0.95, chunk_s=0.0, mixed_s=0.0, rebuild_s=0.0,
        swap_bytes_per_s=50e9, pause_s=20e-6, graph_sizes=sizes,
    )  # fmt: skip
