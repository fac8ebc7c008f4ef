"""Replicas of our LLM server in Ray Serve, behind one endpoint, each request routed by one of our rules.

From Python: `serve.run(llm_app({"replicas": 2, "rule": "session-hash", "demo": True}))`; from a configuration file:
`import_path: dispatchgym.serving.plugins.ray_llm:llm_app` with the same as `args`. Tested with Ray 2.60.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.envs.registry import unknown_name
from dispatchgym.serving.llm.options import ServeLlm, check
from dispatchgym.serving.llm.service import Service, opened

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
except ImportError as error:
    raise ImportError("dispatchgym.serving.plugins.ray_llm needs Ray Serve: pip install 'dispatchgym[ray]'") from error

ROUTER = "dispatchgym.serving.plugins.ray_router:RuleRouter"
NOT_HERE = ("host", "port", "compile", "insecure", "drain_s", "admin_token_file", "audit_log")
"""Options of `serve llm` that are Ray's business: sockets, draining, and who changes the scheduler."""
_PATHS = ("bundles", "api_keys", "record")


class LlmAsgi:
    """The server's application; its engine lives from the lifespan's start to its end.

    Attributes:
        service: None before the start.
    """

    def __init__(self, options: ServeLlm) -> None:
        self.options = options
        self.service: Service | None = None

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            assert self.service is not None
            await self.service.app(scope, receive, send)

    async def _live(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            try:
                self.service = await stack.enter_async_context(opened(self.options))
                frontend = self.service.frontend
                await frontend.has_settled.wait()  # a replica without its model must not be sent requests
                if frontend.failed:
                    raise UsageError(frontend.failed)
            except (DispatchGymError, OSError) as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            frontend.is_draining = True
        await send({"type": "lifespan.shutdown.complete"})


@serve.ingress()
class LlmReplica:
    """One engine with its HTTP interface.

    Args:
        options: of `dispatchgym serve llm`, with underscores.

    Raises:
        UsageError: options that do not go together. UnknownNameError: no such option.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._app = LlmAsgi(options_of(options))

    def __serve_build_asgi_app__(self) -> LlmAsgi:
        return self._app

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Called by Ray Serve with the deployment's user_config: {"scheduler": NAME} is switched to under traffic.

        Raises:
            SwitchError: it cannot be loaded; the one before goes on.
        """
        name = config.get("scheduler")
        if name is None:
            return
        if self._app.service is None:  # before the start: it decides from the first step on
            self._app.options = options_of({**_plain(self._app.options), "scheduler": name})
        elif name != self._app.service.frontend.recipe.scheduler:
            await self._app.service.frontend.switch(name)

    async def check_health(self) -> None:
        """Called by Ray Serve: a replica whose engine is given up is replaced.

        Raises:
            UsageError: says why.
        """
        if self._app.service is not None and self._app.service.frontend.failed:
            raise UsageError(self._app.service.frontend.failed)


def options_of(given: Mapping[str, Any]) -> ServeLlm:
    """Options of `serve llm`, checked.

    Raises:
        UnknownNameError: no such option. UsageError: one that is Ray's business, or that does not go with another.
    """
    known = [each.name for each in fields(ServeLlm) if each.name not in NOT_HERE]
    for name in given:
        if name in NOT_HERE:
            raise UsageError(f"option {name} is Ray Serve's business: its HTTP options and user_config take its place")
        if name not in known:
            raise unknown_name("option of serve llm", name, known)
    paths = {name: Path(given[name]) for name in _PATHS if given.get(name) is not None}
    options = ServeLlm(**{**given, **paths})
    check(options)
    return options


def _plain(options: ServeLlm) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in fields(ServeLlm) if each.name not in NOT_HERE}


def llm_app(arguments: dict[str, Any]) -> Any:
    """An application of Ray Serve: replicas of an LLM server.

    Deployed from a configuration file, replicas switch to another `scheduler` of the deployment's user_config while
    they run; `serve.run` replaces them.

    Args:
        arguments: `replicas` (2), `rule` of the router ("shortest-queue"), `actor` (options of each replica's
            actor, such as {"num_gpus": 1}), `ongoing` (requests at a replica, 512), and options of `serve llm`.

    Raises:
        UnknownNameError, UsageError: options that cannot work.
    """
    options = dict(arguments)
    replicas, rule = int(options.pop("replicas", 2)), str(options.pop("rule", "shortest-queue"))
    actor, ongoing = dict(options.pop("actor", {})), int(options.pop("ongoing", 512))
    scheduler = options_of(options).scheduler
    options.pop("scheduler", None)  # in user_config instead: a change of that alone restarts nobody
    return serve.deployment(
        LlmReplica,
        name="llm",
        num_replicas=replicas,
        max_ongoing_requests=ongoing,
        ray_actor_options=actor,
        user_config={"scheduler": scheduler},
        request_router_config=RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={"rule": rule}),
    ).bind(options)
