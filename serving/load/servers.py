"""The servers that schedulers are compared on: one that runs, or one started for it."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import httpx

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.load.client import reason

START_S = 600.0
"""A server has so long to load its model."""
SETTLE_S = 300.0
"""A server has so long to finish what is left of the run before."""
SWITCH_S = 120.0
"""A scheduler has so long to be loaded, compiled and rehearsed."""
STARTING = 503
"""Status of a server whose engine starts again."""

MOST_TOLD = 5
"""Last lines of a server that did not start."""


class Decisions(TypedDict):
    """What a scheduler's decisions took in a run, and those that its fallback rule made, by cause.

    The percentiles are None for a rule that runs inside the engine.
    """

    p50_ms: float | None
    p99_ms: float | None
    faults: dict[str, int]


@dataclass(slots=True)
class Server:
    """A server under test.

    Attributes:
        url: without /v1.
        admin_token: to switch its scheduler; "" where that is not to be done.
    """

    url: str
    admin_token: str = ""
    _faults: Counter[str] = field(default_factory=Counter)

    async def switch(self, name: str) -> None:
        """Wait until the server has nothing to do, and let that scheduler decide.

        Raises:
            UsageError: it stays busy, or refuses.
        """
        headers = {"authorization": f"Bearer {self.admin_token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=SWITCH_S) as http:
            try:
                async with asyncio.timeout(SETTLE_S):
                    while (said := await _status(http))["running"] + said["waiting"]:
                        await asyncio.sleep(0.2)
                    while (
                        answer := await http.post("/admin/scheduler", json={"scheduler": name})
                    ).status_code == STARTING:
                        await asyncio.sleep(1.0)
                answer.raise_for_status()
            except TimeoutError:
                raise UsageError(f"{self.url}: still busy after {SETTLE_S:g} s") from None
            except (httpx.HTTPError, ValueError, LookupError) as error:
                raise UsageError(f"{self.url}: scheduler {name} cannot be switched to: {reason(error)}") from None
        self._faults = Counter(said["faults"])

    async def scheduler(self) -> str:
        """Which one decides.

        Raises:
            UsageError: the server does not tell.
        """
        headers = {"authorization": f"Bearer {self.admin_token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=SWITCH_S) as http:
            try:
                return str((await http.get("/admin/scheduler")).raise_for_status().json()["scheduler"])
            except (httpx.HTTPError, ValueError, LookupError) as error:
                raise UsageError(f"{self.url}/admin/scheduler: {reason(error)}") from None

    async def decisions(self) -> Decisions:
        """Of the present scheduler, since it was switched to.

        Raises:
            UsageError: the server does not answer.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=SWITCH_S) as http:
            try:
                said = await _status(http)
                return {
                    "p50_ms": said["policy_p50_ms"],
                    "p99_ms": said["policy_p99_ms"],
                    "faults": dict(Counter(said["faults"]) - self._faults),
                }
            except (httpx.HTTPError, ValueError, LookupError) as error:
                raise UsageError(f"{self.url}/status: {reason(error)}") from None


async def _status(http: httpx.AsyncClient) -> dict[str, Any]:
    said: dict[str, Any] = (await http.get("/status")).raise_for_status().json()
    return said


@asynccontextmanager
async def started(arguments: Sequence[str]) -> AsyncIterator[Server]:
    """A `dispatchgym serve llm` with these arguments, on a free port, which ends with the block.

    Raises:
        UsageError: it ends before it is ready, or is not ready in time.
    """
    token = secrets.token_hex(16)
    with TemporaryDirectory(prefix="dispatchgym-compare-") as scratch:
        file = Path(scratch) / "admin-token"
        file.touch(mode=0o600)
        file.write_text(token, encoding="utf-8")
        command = [
            *(sys.executable, "-m", "dispatchgym", "serve", "llm", "--port", "0", "--admin-token-file", str(file)),
            *arguments,
        ]
        # Our own program under our own interpreter, without a shell: what users typed is passed on as arguments only.
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        reader: asyncio.Task[None] | None = None
        try:
            url = await _url(process.stderr)
            reader = asyncio.create_task(_drink(process.stderr))
            yield Server(url, token)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            if reader is not None:
                await reader


async def _url(stream: asyncio.StreamReader) -> str:
    """Address that a server names in what it says, once it is ready."""
    said: list[str] = []
    url = ""
    try:
        async with asyncio.timeout(START_S):
            while line := (await stream.readline()).decode(errors="replace"):
                said = [*said[-20:], line.rstrip()]
                if line.startswith("listening at "):
                    url = line.split()[-1]
                if line.startswith("ready: "):
                    return url
    except TimeoutError:
        raise UsageError(f"serve llm: not ready after {START_S:g} s") from None
    told = [text for line in said if (text := line.strip("╭╮╰╯│─ "))]  # without the box that options are refused in
    errors = [text for text in told[-1:] if text.startswith("error: ")] or told[-MOST_TOLD:]
    raise UsageError(f"serve llm ended: {'; '.join(errors) or 'it said nothing'}")


async def _drink(stream: asyncio.StreamReader) -> None:
    """Read what nobody wants, so that its writer does not wait."""
    while await stream.readline():
        pass
