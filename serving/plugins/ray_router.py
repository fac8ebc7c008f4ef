"""A request router of Ray Serve that asks one of our routing rules.

In a deployment: `RequestRouterConfig(request_router_class="dispatchgym.serving.plugins.ray_router:RuleRouter",
request_router_kwargs={"rule": "session-hash"})`. Tested with Ray 2.60.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.plugins.prefix_memory import PrefixMemory
from dispatchgym.solvers.routing import ROUTING_RULES, RoutingView, shortest_queue

try:
    from ray.serve.request_router import (
        FIFOMixin,
        PendingRequest,
        ReplicaID,
        ReplicaResult,
        RequestRouter,
        RunningReplica,
    )
except ImportError as error:
    raise ImportError(
        "dispatchgym.serving.plugins.ray_router needs Ray Serve: pip install 'dispatchgym[ray]'"
    ) from error

Rule = Callable[[RoutingView], "np.typing.NDArray[np.float64]"]
log = logging.getLogger("ray.serve")
_SESSION_FIELDS = ("session_id", "program_id", "user", "tenant")


class RuleRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Ranks the replicas by a rule's scores, so that a full replica's requests go to the next best.

    A rule that raises, or scores with NaN, is replaced by the shortest queue for that request, and `faults` counts it.
    Over HTTP the router sees no body: sessions come from the header X-Session-Id, prompts are not seen.
    Calls through a deployment handle show their first argument: its `prompt` or `messages`, and its `session_id`.
    """

    def initialize_state(self, rule: str = "shortest-queue", seed: int = 0) -> None:
        """Called by Ray Serve with `request_router_kwargs`.

        Args:
            rule: a name from ROUTING_RULES, or "module:attribute" of a function of the same kind.
            seed: of the draws, those between equal scores too.

        Raises:
            UsageError: no such rule.
        """
        self.rule = named_rule(rule)
        self.faults = 0
        self._rng = np.random.default_rng(seed)
        self._outstanding: dict[str, int] = {}
        self._last_sent: dict[str, int] = {}
        self._memory = PrefixMemory()
        self._serial = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica a rank, best first."""
        if not candidate_replicas:
            return []
        session, prompt = ("", "") if pending_request is None else session_and_prompt(pending_request)
        names = tuple(replica.replica_id.unique_id for replica in candidate_replicas)
        view = RoutingView(
            names,
            np.array([self._outstanding.get(name, 0) for name in names], np.int64),
            np.array([self._last_sent.get(name, -1) for name in names], np.int64),
            self._memory.matched(names, prompt),
            self._memory.held(names),
            len(prompt),
            session,
            self._rng,
        )
        order = np.lexsort((self._rng.random(len(names)), -self._scores(view)))
        return [[candidate_replicas[i]] for i in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Called by Ray Serve when a replica has taken a request."""
        name = replica_id.unique_id
        self._outstanding[name] = self._outstanding.get(name, 0) + 1
        self._serial += 1
        self._last_sent[name] = self._serial
        self._memory.sent(name, session_and_prompt(pending_request)[1])

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Ray Serve when a request is over, however it ended."""
        name = replica_id.unique_id
        self._outstanding[name] = max(0, self._outstanding.get(name, 0) - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray Serve when replicas come or go."""
        super().update_replicas(replicas)
        names = [replica.replica_id.unique_id for replica in replicas]
        self._memory.keep(names)
        for counts in (self._outstanding, self._last_sent):
            for gone in counts.keys() - set(names):
                del counts[gone]

    def _scores(self, view: RoutingView) -> np.typing.NDArray[np.float64]:
        try:
            scores = np.asarray(self.rule(view), np.float64)
            if scores.shape == (len(view.replicas),) and not np.isnan(scores).any():
                return scores
            reason = f"scores of shape {scores.shape}, NaN among them: {bool(np.isnan(scores).any())}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self.faults += 1
        log.warning("routing rule failed (%d so far), the shortest queue decides: %s", self.faults, reason)
        return shortest_queue(view)


def named_rule(name: str) -> Rule:
    """The rule of that name, or at "module:attribute"."""
    if name.startswith("bundle:"):
        raise UsageError(
            f"{name}: bundles of this version decide inside one engine or cluster; none routes requests yet"
        )
    module, colon, attribute = name.partition(":")
    if not colon:
        rule: Rule = ROUTING_RULES[name]
        return rule
    try:
        found: Rule = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"routing rule {name!r} cannot be imported ({error}); write module:attribute") from None
    return found


def session_and_prompt(request: PendingRequest) -> tuple[str, str]:
    """What a request shows of itself to a router, "" where nothing."""
    first = request.args[0] if request.args else next(iter(request.kwargs.values()), None)
    fields = first if isinstance(first, Mapping) else getattr(first, "__dict__", {})
    session = request.metadata.session_id or next((str(fields[key]) for key in _SESSION_FIELDS if fields.get(key)), "")
    return session, _text(fields.get("prompt") or fields.get("messages") or "")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return f"{content.get('role', '')}\0{_text(content.get('content') or '')}\0"
    if isinstance(content, list | tuple):
        return "".join(part if isinstance(part, str) else _text(part) for part in content)
    return str(getattr(content, "content", content))
