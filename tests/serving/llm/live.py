"""An LLM server in this process, on a real socket, over an engine of letters."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dispatchgym.serving.http_server import KEEP_ALIVE_S
from dispatchgym.serving.llm.access import LlmGate, RateLimits
from dispatchgym.serving.llm.admin import SchedulerAdmin
from dispatchgym.serving.llm.asking import Asking
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.sequences import Limits
from dispatchgym.serving.llm.server import build_app
from dispatchgym.serving.llm.texts import Language
from tests.serving.llm import engines

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A tokenizer of bytes: token i is byte i, 256 ends an output."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = {c: i for i, c in enumerate(_byte_letters())}
    assert sorted(by_byte) == alphabet
    inner = Tokenizer(models.BPE(vocab=by_byte, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>", "<a>", "<b>", "<c>"])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    made.chat_template = template
    made.save_pretrained(str(folder))
    return folder


def _byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte: itself where it prints, else from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


@cache
def language() -> Language:
    return Language(write_tokenizer(Path(mkdtemp(prefix="letters-"))))


def letters(prompt: str, count: int) -> str:
    """What the engine of letters says to a prompt."""
    import numpy as np

    ids = np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)
    return "".join(chr(engines.next_token(ids, place)) for place in range(count))


def eventually(condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
    """True as soon as the condition holds, False if it does not in time."""
    until = time.monotonic() + limit_s
    pause = threading.Event()
    while time.monotonic() < until:
        if condition():
            return True
        pause.wait(0.005)
    return False


@dataclass
class Live:
    frontend: Frontend
    port: int
    loop: asyncio.AbstractEventLoop
    gate: engines.Gate = field(default_factory=engines.Gate)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def idle(self) -> bool:
        """Nothing waits or runs, and every block is free."""
        last, ready = self.frontend.last, self.frontend.ready
        return not list(self.frontend.sequences) and last is not None and ready is not None and (
            last.free_blocks == ready.kv_blocks
        )  # fmt: skip


_GATES = iter(range(10**9))


@contextmanager
def serving(
    *,
    engine: dict[str, Any] | None = None,
    limits: Limits | None = None,
    access: LlmGate | None = None,
    rates: RateLimits | None = None,
    admin: dict[str, Any] | None = None,
    in_thread: bool = True,
    deadline_s: float | None = None,
    **recipe: Any,
) -> Iterator[Live]:
    """A server on a free port; `recipe` and `engine` say what it runs."""
    name = f"gate-{next(_GATES)}"
    gate = engines.GATES[name] = engines.Gate()
    made = Recipe(
        **{"budget_s": 60.0, **recipe},
        build="tests.serving.llm.engines:build",
        arguments={"gate": name, **(engine or {})},
    )
    begun, over = threading.Event(), threading.Event()
    found: list[Live] = []
    servers: list[uvicorn.Server] = []

    async def run() -> None:
        metrics = LlmMetrics("letters")
        frontend = Frontend(made, limits or Limits(backoff_s=0.0), metrics, time.monotonic, in_thread=in_thread)
        async with frontend:
            await frontend.has_settled.wait()
            lax = RateLimits(float("inf"), float("inf"), time.monotonic)
            asking = Asking(frontend, language(), "letters", rates or lax, deadline_s)
            app = build_app(asking, SchedulerAdmin(frontend, **(admin or {})), access or LlmGate())
            config = uvicorn.Config(
                app, host="127.0.0.1", port=0, loop="asyncio", lifespan="off", log_config=None, access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )  # fmt: skip
            server = uvicorn.Server(config)
            servers.append(server)
            task = asyncio.create_task(server.serve())
            while not server.started and not task.done():
                await asyncio.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            found.append(Live(frontend, port, asyncio.get_running_loop(), gate))
            begun.set()
            await task
        over.set()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert begun.wait(120)
    try:
        yield found[0]
    finally:
        gate.is_open.set()
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        del engines.GATES[name]
