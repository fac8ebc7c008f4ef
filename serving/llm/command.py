"""`dispatchgym serve llm`: a model behind OpenAI's interface, scheduled by any policy of the gym."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated

import tyro
import uvicorn

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.http_server import HttpServer, is_local, serve_and_tell, spare_the_collector
from dispatchgym.serving.llm.access import KeyRing, LlmGate, RateLimits
from dispatchgym.serving.llm.admin import SchedulerAdmin
from dispatchgym.serving.llm.asking import Asking
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.machine_code import compile_engine
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.schedulers import load_scheduler
from dispatchgym.serving.llm.sequences import Limits
from dispatchgym.serving.llm.server import build_app
from dispatchgym.serving.llm.texts import Language

DEMO = "demo"
DEMO_BLOCKS = 2048
"""Of the demo's pool, where nobody says: few enough to be filled by a little traffic."""
RANDOM = "random:"
MOST_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class ServeLlm:
    """Serve a model behind OpenAI's interface. Any scheduler of the gym decides; change it while it runs.

    Example: dispatchgym serve llm --demo
    Example: dispatchgym serve llm --model DIR --scheduler sarathi --api-keys keys.txt --admin-token-file admin.txt
    """

    model: str = ""
    """Folder of the model (config.json, safetensors, tokenizer), or random:1b, random:8b: random weights of that size,
    whose text means nothing, for measuring."""

    demo: bool = False
    """Serve a tiny model with random weights on the CPU, under the name demo: its text means nothing."""

    compile: bool = False
    """Compile the engine for this machine and end. `make setup` does it; otherwise the first start takes a minute."""

    scheduler: str = "vllm"
    """A rule's name, with constants behind pluses (sarathi+piece_tokens=256), or bundle:PATH, or bundle:NAME."""

    served_name: str = ""
    """What clients call the model [the folder's name]."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 8000
    """Port, 0 for any free one."""

    device: str = "auto"
    """cuda, cpu, or auto for a GPU where there is one."""

    profile: str = "h200-8b"
    """Step times that schedulers which plan ahead reckon with: a name, or a JSON file."""

    kv_blocks: int = 0
    """Blocks of the KV pool; 0 for as many as the device holds."""

    block_tokens: int = 16
    """Tokens of a KV block."""

    max_len: int = 0
    """Longest prompt and output together; 0 for as long as the model can."""

    max_seqs: int = 256
    """Most sequences that run at once."""

    token_budget: int = 8192
    """Most tokens of a step."""

    host_blocks: int = 0
    """Blocks on the host, for schedulers that swap."""

    max_waiting: int = 512
    """Most sequences that wait; beyond that clients are told to come again later (429)."""

    max_output: int = 16_384
    """Most output tokens of a sequence."""

    deadline_s: float = 600.0
    """A request is given up when it takes longer; clients may ask for less or more (deadline_ms)."""

    policy_budget_ms: float = 20.0
    """What a policy may take for a decision; later, its fallback rule decides."""

    most_faults: int = 10
    """Decisions that a policy may miss before it is not asked any more."""

    bundles: Path | None = None
    """Folder of policy bundles that the administrator may switch to by name."""

    api_keys: Path | None = None
    """File with a line `TENANT KEY` for each key; without it anybody may ask."""

    requests_per_minute: float = float("inf")
    """Of each tenant."""

    tokens_per_minute: float = float("inf")
    """Of each tenant: prompts, and outputs as far as clients name a bound."""

    admin_token_file: Path | None = None
    """File with the token for /admin/scheduler; without it the scheduler cannot be changed over HTTP."""

    audit_log: Path | None = None
    """File that gets a JSON line for every change of the scheduler."""

    insecure: bool = False
    """Listen beyond this machine without API keys."""

    max_request_mib: int = 8
    """Largest request."""

    drain_s: float = 120.0
    """After SIGTERM, what is under way may take so long; a second signal ends at once."""

    record: Path | None = None
    """Folder that gets what the scheduler saw and ordered, without any text: to learn from."""

    record_mib: int = 1024
    """Bound on that folder; the oldest goes first."""


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    options: Annotated[ServeLlm, tyro.conf.FlagCreatePairsOff] = tyro.cli(
        ServeLlm, prog="dispatchgym serve llm", args=list(argv)
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.compile:
        compile_engine()
        return 0
    check(options)
    return asyncio.run(serve(options))


def check(options: ServeLlm) -> None:
    """Refuse what cannot work, or would let anybody in, before anything is loaded.

    Raises:
        UsageError: says which option, and what to give instead.
    """
    if options.demo == bool(options.model):
        raise UsageError("give either --model DIR or --demo")
    if options.model.startswith(RANDOM):
        random_vocabulary(options.model)
    elif options.model and not (Path(options.model) / "config.json").is_file():
        raise UsageError(f"--model {options.model}: holds no config.json; give the folder of a model")
    if not 0.1 <= options.policy_budget_ms <= 60_000:
        raise UsageError(f"--policy-budget-ms {options.policy_budget_ms:g} must be 0.1 to 60000")
    if options.deadline_s <= 0 or options.drain_s < 0 or options.most_faults < 1 or options.record_mib < 1:
        raise UsageError("--deadline-s, --most-faults and --record-mib must be above 0, --drain-s not below")
    if options.bundles is not None and not options.bundles.is_dir():
        raise UsageError(f"--bundles {options.bundles}: is not a folder")
    if not is_local(options.host) and options.api_keys is None and not options.insecure:
        raise UsageError(
            f"--host {options.host}: whoever reaches the port could use the model; give --api-keys, or --insecure if "
            "the network keeps others out"
        )
    load_scheduler(options.scheduler)


def recipe_of(options: ServeLlm) -> Recipe:
    """How the engine's process builds it."""
    return Recipe(
        build="dispatchgym.serving.llm.model:build_engine",
        arguments={
            "model": options.model,
            "device": options.device,
            "profile": options.profile,
            "kv_blocks": options.kv_blocks or (DEMO_BLOCKS if options.demo else 0),
            "host_blocks": options.host_blocks,
            "block_tokens": options.block_tokens,
            "max_len": options.max_len,
            "max_seqs": options.max_seqs,
            "token_budget": options.token_budget,
        },
        scheduler=options.scheduler,
        budget_s=options.policy_budget_ms / 1e3,
        most_faults=options.most_faults,
        record=None if options.record is None else str(options.record),
        record_bytes=options.record_mib * 2**20,
    )


class _Server(HttpServer):
    """Lets nothing new in once it has been told to end; what is under way goes on. Told twice, it ends at once."""

    frontend: Frontend

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self.frontend.is_draining = True


async def serve(options: ServeLlm) -> int:
    """Serve until told to stop.

    Raises:
        UsageError: the model cannot be loaded.
    """
    gate = LlmGate(
        keys=None if options.api_keys is None else KeyRing(options.api_keys),
        admin_token_file=options.admin_token_file,
        max_bytes=options.max_request_mib * 2**20,
    )
    rates = RateLimits(options.requests_per_minute, options.tokens_per_minute, time.monotonic)
    limits = Limits(waiting=options.max_waiting, output_tokens=options.max_output)
    with TemporaryDirectory(prefix="dispatchgym-demo-") as scratch:
        name = options.served_name or (DEMO if options.demo else name_of(options.model))
        frontend = Frontend(recipe_of(options), limits, LlmMetrics(name), time.monotonic)
        async with frontend:  # the engine loads the model while we load the tokenizer
            language = await asyncio.to_thread(_language, options, Path(scratch))
            asking = Asking(frontend, language, name, rates, options.deadline_s)
            admin = SchedulerAdmin(frontend, options.bundles, options.audit_log)
            server = _Server(
                uvicorn.Config(
                    build_app(asking, admin, gate),
                    host=options.host,
                    port=options.port,
                    loop="asyncio",
                    ws="none",
                    lifespan="off",
                    access_log=False,
                    log_config=None,
                    timeout_graceful_shutdown=max(1, round(options.drain_s)),
                    limit_concurrency=MOST_CONNECTIONS,
                )
            )
            server.frontend = frontend
            watch = asyncio.create_task(_watch(frontend, server, name))
            await serve_and_tell(server, lambda port: _tell(f"listening at http://{options.host}:{port}"))
            watch.cancel()
    if frontend.failed:
        raise UsageError(frontend.failed)
    return 0 if server.started else 1


def name_of(model: str) -> str:
    """What clients call a model."""
    return model.replace(":", "-") if model.startswith(RANDOM) else Path(model).resolve().name


def _language(options: ServeLlm, scratch: Path) -> Language:
    """The tokenizer of the model; of random weights, one made here, beside the engine that makes these."""
    if options.model and not options.model.startswith(RANDOM):
        return Language(Path(options.model))
    from dispatchgym.serving.executor.byte_tokenizer import byte_tokenizer

    vocabulary = random_vocabulary(options.model) if options.model else 0
    byte_tokenizer(vocabulary).save_pretrained(str(scratch / "tokenizer"))
    return Language(scratch / "tokenizer")


def random_vocabulary(model: str) -> int:
    """Tokens that random:SIZE may say.

    Raises:
        UnknownNameError: no such size.
    """
    from dispatchgym.serving.executor.shapes import shape  # loads torch, which other models do without here

    return shape(model.removeprefix(RANDOM)).vocabulary


async def _watch(frontend: Frontend, server: HttpServer, name: str) -> None:
    """Say when the engine is ready, and end when it never will be."""
    await frontend.has_settled.wait()
    ready = frontend.ready
    if ready is not None:
        spare_the_collector()
        _tell(
            f"ready: model {name}, {ready.max_len} tokens long, {ready.kv_blocks} KV blocks of {ready.block_tokens} "
            f"tokens; {ready.scheduler} decides"
        )
    await frontend.has_failed.wait()
    server.should_exit = True


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
