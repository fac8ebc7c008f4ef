"""The LLM server's HTTP interface.

POST /v1/completions /v1/chat/completions   as OpenAI's, with streaming
GET  /v1/models
GET  /admin/scheduler                       which scheduler decides, which could
POST /admin/scheduler                       {"scheduler": "sarathi" or "bundle:NAME"}
POST /admin/scheduler/rollback              back to the one before
GET  /status                                the queue, the batch, the pool, for the page at /
GET  /metrics /healthz /readyz
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import dispatchgym
from dispatchgym.envs.api import DispatchGymError
from dispatchgym.serving.llm.access import LlmGate
from dispatchgym.serving.llm.admin import SchedulerAdmin
from dispatchgym.serving.llm.answers import DONE, Answers, Choice, error_body, event, retry_after, status_of
from dispatchgym.serving.llm.asking import Asking
from dispatchgym.serving.llm.forms import FORMS, ChatRequest, CompletionRequest, SchedulerChange
from dispatchgym.serving.llm.generation import Generation
from dispatchgym.serving.llm.status import status
from dispatchgym.serving.security import App, Guarded
from dispatchgym.serving.wire import body_of, openapi_of, read, write

log = logging.getLogger(__name__)

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def build_app(asking: Asking, admin: SchedulerAdmin, gate: LlmGate) -> App:
    """The application, guarded by `gate`."""
    frontend, language, model = asking.frontend, asking.language, asking.model
    began = int(time.time())
    app = FastAPI(title="dispatchgym LLM server", version=dispatchgym.__version__, docs_url=None, redoc_url=None)

    @app.exception_handler(DispatchGymError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, DispatchGymError)
        code, kind = status_of(error)
        if code == 500:
            log.error("%s", error)
        return _json(error_body(code, str(error), kind), code, retry_after(error))

    @app.exception_handler(HTTPException)
    async def refuse_path(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json(error_body(error.status_code, str(error.detail)), error.status_code, dict(error.headers or {}))

    async def complete(request: Request, form: type[CompletionRequest] | type[ChatRequest]) -> Response:
        body = await request.body()
        arrived_s = frontend.clock()
        asked = read(form, body)
        if asked.model != model:
            raise HTTPException(404, f"this server serves the model {model!r}; GET /v1/models lists it")
        is_chat = isinstance(asked, ChatRequest)
        generation = await asking.ask(asked, request.headers, request.scope.get("state", {}).get("tenant"), arrived_s)
        key = ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12)
        wants_logprobs = asked.logprobs is not None and asked.logprobs is not False
        answers = Answers(language, key, int(time.time()), model, chat=is_chat, wants_logprobs=wants_logprobs)
        if asked.stream:
            wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(generation, answers, is_chat=is_chat, wants_usage=wants_usage)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
            )
        try:
            return _json(await _while_connected(request, _whole(generation, answers)))
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    @app.post("/v1/completions", openapi_extra=body_of(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Go on with a prompt, or with several."""
        return await complete(request, CompletionRequest)

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer in a conversation."""
        return await complete(request, ChatRequest)

    @app.get("/v1/models")
    async def models() -> Response:
        """The model that is served."""
        return _json({"object": "list", "data": [_model_card()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """The same, by its name."""
        if name != model:
            raise HTTPException(404, f"this server serves the model {model!r}")
        return _json(_model_card())

    def _model_card() -> dict[str, Any]:
        longest = None if frontend.ready is None else frontend.ready.max_len
        return {"id": model, "object": "model", "created": began, "owned_by": "dispatchgym", "max_model_len": longest}

    @app.get("/admin/scheduler")
    async def scheduler() -> Response:
        """Which scheduler decides, which did before, and which could."""
        return _json(admin.list())

    @app.post("/admin/scheduler", openapi_extra=body_of(SchedulerChange))
    async def change(request: Request) -> Response:
        """Let another scheduler decide; requests stay where they are."""
        asked = read(SchedulerChange, await request.body())
        return _json(await admin.switch(asked.scheduler, _client(request)))

    @app.post("/admin/scheduler/rollback")
    async def roll_back(request: Request) -> Response:
        """Let the scheduler before this one decide."""
        return _json(await admin.roll_back(_client(request)))

    @app.get("/status")
    async def show_status() -> Response:
        """The queue, the batch, the pool and the scheduler, as the page shows them; no text of anybody."""
        return _json(status(frontend))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        text = files("dispatchgym.serving.llm").joinpath("page/index.html").read_text(encoding="utf-8")
        headers = {"content-security-policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}
        return Response(text, media_type="text/html", headers=headers)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(frontend.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> Response:
        return PlainTextResponse(frontend.failed or "ok", 503 if frontend.failed else 200)

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> Response:
        missing = "" if frontend.is_up else frontend.failed or "the model is being loaded"
        missing = "the server is about to end" if frontend.is_draining else missing
        return PlainTextResponse(missing or "ok", 503 if missing else 200)

    described = app.openapi
    app.openapi = lambda: openapi_of(described(), FORMS)  # type: ignore[method-assign]
    return Guarded(app, gate, error_body)


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


def _json(said: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(write(said), code, headers, media_type="application/json")


async def _whole(generation: Generation, answers: Answers) -> dict[str, Any]:
    choices = [Choice() for _ in range(generation.num_choices)]
    async for piece in generation:
        choices[piece.index].add(piece)
    return answers.whole(choices, generation.usage)


async def _events(
    generation: Generation, answers: Answers, *, is_chat: bool, wants_usage: bool
) -> AsyncIterator[bytes]:
    """Events of a stream. An error after its beginning is an event too, for the status has been sent."""
    try:
        if is_chat:
            for index in range(generation.num_choices):
                yield answers.opening(index)
        async for piece in generation:
            yield answers.chunk(piece)
        if wants_usage:
            yield answers.closing(generation.usage)
        yield DONE
    except DispatchGymError as error:
        code, kind = status_of(error)
        yield event(error_body(code, str(error), kind))
    finally:
        generation.cancel()


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The work's result.

    Raises:
        ClientGone: the client went away first; the work has been cancelled.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
            with suppress(asyncio.CancelledError, DispatchGymError):
                await each


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
