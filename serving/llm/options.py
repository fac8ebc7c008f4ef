"""What `serve llm` may be told, and what follows from it for the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.serving.http_server import is_local
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.schedulers import load_scheduler

DEMO = "demo"
DEMO_BLOCKS = 2048
"""Of the demo's pool, where nobody says: few enough to be filled by a little traffic."""
RANDOM, PACED = "random:", "paced:"


@dataclass(frozen=True, slots=True)
class ServeLlm:
    """Serve a model behind OpenAI's interface. Any scheduler of the gym decides; change it while it runs.

    Example: dispatchgym serve llm --demo

    Example: dispatchgym serve llm --model DIR --scheduler sarathi --api-keys keys.txt --admin-token-file admin.txt
    """

    model: str = ""
    """Folder of the model (config.json, safetensors, tokenizer), or random:1b, random:8b: random weights of that size,
    whose text means nothing, for measuring; or paced:PROFILE: no model at all, answers that take as long as the profile
    says, to try schedulers and clients without a GPU."""

    demo: bool = False
    """Serve a tiny model with random weights on the CPU, under the name demo: its text means nothing."""

    compile: bool = False
    """Compile the engine for this machine and end. `make setup` does it; otherwise the first start takes a minute."""

    scheduler: str = "vllm"
    """A rule's name, with constants behind pluses (sarathi+chunk=256), or bundle:PATH, or bundle:NAME."""

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

    slo_margin: float = 0.03
    """Share of clients' bounds kept back from schedulers, for what their profile does not know."""

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


def check(options: ServeLlm) -> None:
    """Refuse what cannot work, or would let anybody in, before anything is loaded.

    Raises:
        UsageError: says which option, and what to give instead.
    """
    if options.demo == bool(options.model):
        raise UsageError("give either --model DIR or --demo")
    if options.model.startswith(RANDOM):
        random_vocabulary(options.model)
    elif options.model.startswith(PACED):
        load_profile(options.model.removeprefix(PACED))
    elif is_folder(options.model) and not (Path(options.model) / "config.json").is_file():
        raise UsageError(f"--model {options.model}: holds no config.json; give the folder of a model")
    if not 0.1 <= options.policy_budget_ms <= 60_000:
        raise UsageError(f"--policy-budget-ms {options.policy_budget_ms:g} must be 0.1 to 60000")
    if not (options.deadline_s > 0 and options.drain_s >= 0 and options.most_faults >= 1 and options.record_mib >= 1):
        raise UsageError("--deadline-s, --most-faults and --record-mib must be above 0, --drain-s not below")
    if options.bundles is not None and not options.bundles.is_dir():
        raise UsageError(f"--bundles {options.bundles}: is not a folder")
    if options.audit_log is not None and not options.audit_log.parent.is_dir():
        raise UsageError(f"--audit-log {options.audit_log}: {options.audit_log.parent} is not a folder; make it first")
    if options.record is not None and options.record.exists() and not options.record.is_dir():
        raise UsageError(f"--record {options.record}: is not a folder")
    if not is_local(options.host) and options.api_keys is None and not options.insecure:
        raise UsageError(
            f"--host {options.host}: whoever reaches the port could use the model; give --api-keys, or --insecure if "
            "the network keeps others out"
        )
    load_scheduler(options.scheduler)
    load_profile(options.profile)


def recipe_of(options: ServeLlm) -> Recipe:
    """How the engine's process builds it."""
    paced = options.model.startswith(PACED)
    of_model = (
        {"paced": options.model.removeprefix(PACED)} if paced else {"model": options.model, "device": options.device}
    )
    return Recipe(
        build=f"dispatchgym.serving.llm.model:{'build_paced_engine' if paced else 'build_engine'}",
        arguments={
            **of_model,
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


def name_of(options: ServeLlm) -> str:
    """What clients call the model."""
    if options.served_name or options.demo:
        return options.served_name or DEMO
    model = options.model
    return model.replace(":", "-") if not is_folder(model) else Path(model).resolve().name


def is_folder(model: str) -> bool:
    """It is read from a folder, tokenizer and all."""
    return bool(model) and not model.startswith((RANDOM, PACED))


def random_vocabulary(model: str) -> int:
    """Tokens that random:SIZE may say.

    Raises:
        UnknownNameError: no such size.
    """
    from dispatchgym.serving.executor.shapes import shape  # loads torch, which other models do without here

    return shape(model.removeprefix(RANDOM)).vocabulary
