"""The extender's HTTP server: kube-scheduler's four verbs, and what people and machines want to know beside them.

    POST /filter /prioritize /preempt /bind    asked by kube-scheduler
    GET  /explain/NAMESPACE/POD                why a pod goes where it goes; ?limit= nodes
    POST /explain                              the same about a pod that need not exist: {"Pod": {...}}
    GET  /agreement                            how often pods went where the policy wanted
    GET  /metrics /healthz /readyz

The verbs are answered on the event loop, one after the other, as kube-scheduler asks them; the policy has a thread of
its own and a latency budget. `explain` has none and runs beside them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import dispatchgym
from dispatchgym.serving.kube.convert import pod_facts
from dispatchgym.serving.kube.explain import explain
from dispatchgym.serving.kube.extender import Extender
from dispatchgym.serving.kube.follow import Follower
from dispatchgym.serving.kube.policies import PLAIN_RULES, RulePolicy
from dispatchgym.serving.kube.scheduler_api import ApiError
from dispatchgym.serving.kube.wire import (
    FORMS,
    ExtenderArgs,
    ExtenderBindingArgs,
    ExtenderPreemptionArgs,
    PodOnly,
)
from dispatchgym.serving.security import Access, App, Guarded
from dispatchgym.serving.wire import Form, RequestError, body_of, openapi_of, read, write

log = logging.getLogger(__name__)

MOST_LISTED = 1000
_Name = Annotated[str, Path(max_length=253)]


class Readiness:
    """Whether the policy is compiled and the cluster has been listed."""

    def __init__(self, follower: Follower | None) -> None:
        self.is_warm = threading.Event()
        self.failed = ""
        self._follower = follower

    @property
    def missing(self) -> str:
        """What is not ready yet, "" if all is."""
        if self.failed:
            return self.failed
        if not self.is_warm.is_set():
            return "the policy is being loaded"
        if self._follower is not None and not self._follower.is_synced:
            return "the cluster has not been listed yet"
        return ""


def build_app(
    extender: Extender,
    access: Access,
    follower: Follower | None = None,
    when_warm: Callable[[], None] = lambda: None,
) -> App:
    """The application, guarded by `access`. Its lifespan warms the policy up and follows the cluster.

    Args:
        when_warm: called once the policy has been asked for the first time.
    """
    metrics = extender.metrics
    ready = Readiness(follower)

    def warm_up() -> None:
        try:
            extender.advisor.warm_up([RulePolicy(name) for name in PLAIN_RULES])
            when_warm()
            ready.is_warm.set()
            if follower is not None and extender.config.dry_run:
                follower.start()  # only now: what it sees it decides on
        except Exception:  # said by /readyz and in the log; the server answers neutral scores meanwhile
            log.exception("policy %s cannot be asked", extender.advisor.policy.name)
            ready.failed = f"policy {extender.advisor.policy.name} cannot be asked; see the log"

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
        if follower is not None and not extender.config.dry_run:
            follower.start()
        yield
        if follower is not None:
            follower.stop()
        extender.advisor.close()
        extender.decisions.close()

    app = FastAPI(
        title="dispatchgym scheduler extender",
        version=dispatchgym.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )

    async def answer(
        verb: str, request: Request, form: type[Form], ask: Callable[[Form], Any], in_thread: bool = False
    ) -> Response:
        begin = time.perf_counter()
        code = 500
        try:
            args = read(form, await request.body())
            body = write(await run_in_threadpool(ask, args) if in_thread else ask(args))
            code = 200
        except ApiError as error:
            log.warning("%s: %s", verb, error)
            body, code = write({"Error": str(error)}), 200  # the protocol's own way to say so
        except RequestError as error:
            log.warning("%s: refused: %s", verb, error)
            body, code = write({"error": str(error)}), 400
        finally:
            metrics.requests.labels(verb, str(code)).inc()
            metrics.latency.labels(verb).observe(time.perf_counter() - begin)
        return Response(body, code, media_type="application/json")

    @app.post("/filter", openapi_extra=body_of(ExtenderArgs))
    async def filter_nodes(request: Request) -> Response:
        """The nodes that will do: ExtenderFilterResult."""
        return await answer("filter", request, ExtenderArgs, extender.filter)

    @app.post("/prioritize", openapi_extra=body_of(ExtenderArgs))
    async def prioritize(request: Request) -> Response:
        """What the policy thinks of the nodes: HostPriorityList."""
        return await answer("prioritize", request, ExtenderArgs, extender.prioritize)

    @app.post("/preempt", openapi_extra=body_of(ExtenderPreemptionArgs))
    async def preempt(request: Request) -> Response:
        """The nodes where eviction helps: ExtenderPreemptionResult."""
        return await answer("preempt", request, ExtenderPreemptionArgs, extender.preempt)

    @app.post("/bind", openapi_extra=body_of(ExtenderBindingArgs))
    async def bind(request: Request) -> Response:
        """Bind a pod: ExtenderBindingResult. Waits for the API server, so it is not done on the event loop."""
        return await answer("bind", request, ExtenderBindingArgs, extender.bind, in_thread=True)

    @app.post("/explain", openapi_extra=body_of(PodOnly))
    async def explain_what_if(request: Request, limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 10) -> Response:
        """Explain a pod that need not exist."""
        body = await request.body()
        return await run_in_threadpool(_explained, lambda: pod_facts(read(PodOnly, body).Pod), limit)

    @app.get("/explain/{namespace}/{name}")
    def explain_pod(namespace: _Name, name: _Name, limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 10) -> Response:
        """Explain a pod that waits or runs."""
        pod = extender.state.find_pod(namespace, name)
        if pod is None:
            raise HTTPException(404, "no such pod is known; post it to /explain to ask about one that does not exist")
        return _explained(lambda: pod, limit)

    def _explained(pod: Callable[[], Any], limit: int) -> Response:
        try:
            facts = pod()
            said = explain(extender.advisor, facts, limit)
            decision = extender.decisions.latest(facts.uid)
            return Response(
                write({**said, "last_decision": asdict(decision) if decision else None}), media_type="application/json"
            )
        except RequestError as error:
            return Response(write({"error": str(error)}), 400, media_type="application/json")

    @app.get("/agreement")
    def agreement() -> Response:
        """How often pods went where the policy wanted."""
        counts = extender.decisions.agreement
        said = {
            "policy": extender.advisor.policy.name, "dry_run": extender.config.dry_run,
            **asdict(counts), "rate": counts.rate,
        }  # fmt: skip
        return Response(write(said), media_type="application/json")

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> Response:
        return PlainTextResponse(ready.missing or "ok", 503 if ready.missing else 200)

    described = app.openapi
    app.openapi = lambda: openapi_of(described(), FORMS)  # type: ignore[method-assign]
    return Guarded(app, access)
