"""Everything behind the HTTP interface of `serve llm`: an engine, its frontend, and the application that asks it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dispatchgym.serving.llm.access import KeyRing, LlmGate, RateLimits
from dispatchgym.serving.llm.admin import SchedulerAdmin
from dispatchgym.serving.llm.asking import Asking
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.options import RANDOM, ServeLlm, is_folder, name_of, random_vocabulary, recipe_of
from dispatchgym.serving.llm.sequences import Limits
from dispatchgym.serving.llm.server import build_app
from dispatchgym.serving.llm.texts import Language


@dataclass(frozen=True, slots=True)
class Service:
    """A server without its sockets.

    Attributes:
        app: the ASGI application.
        name: of the model.
    """

    app: Any
    frontend: Frontend
    name: str


@asynccontextmanager
async def opened(options: ServeLlm) -> AsyncIterator[Service]:
    """A service that takes requests once its frontend has settled; its engine ends with the block.

    Raises:
        UsageError: the tokenizer cannot be loaded, or a file of keys or tokens cannot be used.
    """
    gate = LlmGate(
        keys=None if options.api_keys is None else KeyRing(options.api_keys),
        admin_token_file=options.admin_token_file,
        max_bytes=options.max_request_mib * 2**20,
    )
    rates = RateLimits(options.requests_per_minute, options.tokens_per_minute, time.monotonic)
    limits = Limits(waiting=options.max_waiting, output_tokens=options.max_output, slo_margin=options.slo_margin)
    name = name_of(options)
    frontend = Frontend(recipe_of(options), limits, LlmMetrics(name), time.monotonic)
    async with frontend:  # the engine loads the model while we load the tokenizer
        language = await asyncio.to_thread(_language, options)
        asking = Asking(frontend, language, name, rates, options.deadline_s)
        admin = SchedulerAdmin(frontend, options.bundles, options.audit_log)
        yield Service(build_app(asking, admin, gate), frontend, name)


def _language(options: ServeLlm) -> Language:
    """The tokenizer of the model; of random weights, one made here, beside the engine that makes these."""
    if is_folder(options.model):
        return Language(Path(options.model))
    from dispatchgym.serving.executor.byte_tokenizer import byte_tokenizer

    vocabulary = random_vocabulary(options.model) if options.model.startswith(RANDOM) else 0
    with TemporaryDirectory(prefix="dispatchgym-tokenizer-") as scratch:
        byte_tokenizer(vocabulary).save_pretrained(scratch)
        return Language(Path(scratch))
