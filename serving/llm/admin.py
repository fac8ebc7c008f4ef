"""Which scheduler decides: listing, switching, rolling back; every change is written down."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import BUNDLE
from dispatchgym.envs.api import DispatchGymError, UnknownNameError, UsageError
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.schedulers import FAMILY, bundles_in, find_bundle
from dispatchgym.serving.llm.sequences import SwitchError, UnavailableError
from dispatchgym.serving.wire import RequestError
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

log = logging.getLogger(__name__)
audit = logging.getLogger("dispatchgym.audit")

MOST_TOLD = 50
"""Past schedulers that a listing shows."""


class SchedulerAdmin:
    """Changes the scheduler of a running server, one change at a time.

    Args:
        bundle_folder: where bundles are found by name, beside the shipped ones.
        journal: file that gets a JSON line a change; None for the log alone.
    """

    def __init__(self, frontend: Frontend, bundle_folder: Path | None = None, journal: Path | None = None) -> None:
        self._frontend = frontend
        self._folder = bundle_folder
        self._journal = journal
        self._turn = asyncio.Lock()

    def list(self) -> dict[str, Any]:
        """What decides, what did, what could."""
        ready, last = self._frontend.ready, self._frontend.last
        return {
            "scheduler": ready.scheduler if ready else self._frontend.recipe.scheduler,
            "version": ready.version if ready else "",
            "is_benched": bool(last and last.is_benched),
            "faults": dict(last.faults) if last else {},
            "history": self._frontend.history[-MOST_TOLD:],
            "rules": list(SCHEDULERS),
            "bundles": [BUNDLE + name for name in (*bundles_in(self._folder), *_shipped())],
        }

    async def switch(self, name: str, who: str) -> dict[str, Any]:
        """Let that scheduler decide.

        Raises:
            RequestError: it cannot be loaded; the one before goes on. UnavailableError: the engine is down.
        """
        async with self._turn:
            return await self._change("switch", name, who)

    async def roll_back(self, who: str) -> dict[str, Any]:
        """Let the one decide that did before the present one.

        Raises:
            RequestError: there is none.
        """
        async with self._turn:
            history = self._frontend.history
            if len(history) < 2:
                raise RequestError("there is no scheduler before this one")
            before = history[-2]
            said = await self._change("roll back", before, who)
            del history[-2:]  # the one that was left, and the second mention of the one before it
            return said

    async def _change(self, action: str, name: str, who: str) -> dict[str, Any]:
        now = self._frontend.history[-1] if self._frontend.history else ""
        entry = {"at": datetime.now(UTC).isoformat(), "action": action, "by": who, "from": now, "to": name}
        try:
            known = name == now or name in self._frontend.history
            wanted = find_bundle(name, self._folder) if name.startswith(BUNDLE) and not known else name
            answer = await self._frontend.switch(wanted)
        except (SwitchError, UnavailableError, UsageError, UnknownNameError) as error:
            self._write({**entry, "error": str(error)})
            if isinstance(error, UnavailableError):
                raise
            raise RequestError(f"scheduler: {error}") from None
        self._write({**entry, "version": answer.version})
        return {"scheduler": answer.scheduler, "version": answer.version, "before": now}

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        audit.info("%s", line)
        if self._journal is not None:
            try:
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise DispatchGymError(f"the audit log cannot be written: {error}") from None


def _shipped() -> list[str]:
    """Bundles that come with the package; none where one of them is of another version."""
    try:
        return bundles.shipped(FAMILY)
    except bundles.BundleError as error:
        log.warning("shipped bundles are not listed: %s", error)
        return []
