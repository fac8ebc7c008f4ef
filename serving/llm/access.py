"""Who may ask the LLM server, as whom, and how much a minute."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.security import OPEN_PATHS, SHORTEST_TOKEN, Scope, bearer, token_in

PAGE = "/"
ADMIN = "/admin/"
ANYBODY = "anybody"
"""Tenant of requests that name none, where no keys are demanded."""
MOST_TENANTS = 10_000
"""Whose use is remembered at a time: the longest unused is forgotten, and starts afresh."""


class KeyRing:
    """API keys in a file, a line each: a tenant's name and its key. Read again whenever the file changes.

    Raises:
        UsageError: the file holds no key, or one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: list[tuple[str, bytes]] = []
        self._refresh(strict=True)

    def tenant_of(self, secret: bytes) -> str | None:
        """Whose key that is; takes as long whichever it is, or none."""
        self._refresh(strict=False)
        found = None
        for tenant, key in self._keys:
            if hmac.compare_digest(secret, key):
                found = tenant
        return found

    def _refresh(self, *, strict: bool) -> None:
        try:
            stat = self.path.stat()
            if self._stamp == (stat.st_mtime_ns, stat.st_size):
                return
            keys = _parse(self.path.read_text(encoding="utf-8"), self.path)
        except (OSError, UnicodeDecodeError, UsageError):
            if strict:
                raise
            self._keys, self._stamp = [], None  # a file that cannot be read lets nobody in
            return
        self._keys, self._stamp = keys, (stat.st_mtime_ns, stat.st_size)


def _parse(text: str, path: Path) -> list[tuple[str, bytes]]:
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or len(words[1]) < SHORTEST_TOKEN:
            raise UsageError(f"{path}, line {number}: not a tenant and a key of {SHORTEST_TOKEN} characters or more")
        keys.append((words[0], words[1].encode()))
    if not keys:
        raise UsageError(f"{path}: holds no key; write a line TENANT KEY for each")
    return keys


@dataclass(frozen=True, slots=True)
class LlmGate:
    """Who may ask: tenants with a key, the administrator with a token.

    Attributes:
        keys: None lets anybody ask for completions.
        admin_token_file: None leaves no way to change the scheduler over HTTP.
    """

    keys: KeyRing | None = None
    admin_token_file: Path | None = None
    max_bytes: int = 8 * 2**20
    body_s: float = 10.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.body_s <= 0:
            raise UsageError(f"limits of {self.max_bytes} bytes and {self.body_s} s must be above 0")
        if self.admin_token_file is not None and token_in(self.admin_token_file) is None:
            raise UsageError(f"{self.admin_token_file}: holds no token of {SHORTEST_TOKEN} characters or more")

    @property
    def wanted(self) -> str:
        """What it wants to be shown."""
        if self.admin_token_file is None:
            return "a valid API key as the bearer token; /admin answers nobody without --admin-token-file"
        return "a valid API key as the bearer token, or for /admin the administrator's token"

    def allows(self, scope: Scope) -> bool:
        """The request comes from somebody who may ask; notes the tenant of a key in the scope's state."""
        path: str = scope["path"]
        if path in OPEN_PATHS or path == PAGE:
            return True
        secret = bearer(scope)
        token = token_in(self.admin_token_file) if self.admin_token_file is not None else None
        is_admin = hmac.compare_digest(secret, token or b"") and token is not None
        if path.startswith(ADMIN):
            return is_admin
        if self.keys is None or is_admin:
            return True
        tenant = self.keys.tenant_of(secret)
        scope.setdefault("state", {})["tenant"] = tenant
        return tenant is not None


@dataclass(slots=True)
class _Bucket:
    requests: float
    tokens: float
    at_s: float


class RateLimits:
    """Requests and tokens a minute of each tenant; a minute's worth may come at once.

    Args:
        requests_per_minute, tokens_per_minute: inf for no limit.
        clock: seconds.
    """

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, clock: Callable[[], float]) -> None:
        if not requests_per_minute > 0 or not tokens_per_minute > 0:
            raise UsageError(
                f"--requests-per-minute {requests_per_minute:g} and --tokens-per-minute {tokens_per_minute:g} must be "
                "above 0"
            )
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __str__(self) -> str:
        limits = (self.requests_per_minute, "requests"), (self.tokens_per_minute, "tokens")
        return " and ".join(f"{most:.10g} {what}" for most, what in limits if math.isfinite(most)) + " a minute"

    def take(self, tenant: str, requests: int, tokens: int) -> float:
        """Count a request; returns 0, or the seconds after which it may come again, and then counts nothing.

        More tokens than a minute's worth are let in when the bucket is full, and paid for afterwards.
        """
        now = self._clock()
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = _Bucket(self.requests_per_minute, self.tokens_per_minute, now)
            self._buckets[tenant] = bucket
            while len(self._buckets) > MOST_TENANTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(tenant)
        past, bucket.at_s = now - bucket.at_s, now
        bucket.requests = min(self.requests_per_minute, bucket.requests + past * self.requests_per_minute / 60)
        bucket.tokens = min(self.tokens_per_minute, bucket.tokens + past * self.tokens_per_minute / 60)
        wait_s = max(
            _missing(min(requests, self.requests_per_minute), bucket.requests, self.requests_per_minute),
            _missing(min(tokens, self.tokens_per_minute), bucket.tokens, self.tokens_per_minute),
        )
        if wait_s > 0:
            return wait_s
        bucket.requests -= requests
        bucket.tokens -= tokens
        return 0.0


def _missing(wanted: float, there: float, per_minute: float) -> float:
    """Seconds until there is enough."""
    if math.isinf(per_minute) or wanted <= there + 1e-9:
        return 0.0
    return (wanted - there) * 60 / per_minute
