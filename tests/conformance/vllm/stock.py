"""vLLM's own scheduler on a CPU: no model, no GPU, tokens made up."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import LlamaConfig
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tests.conformance.vllm.cases import BLOCK, Case, Step

STOP = 7
init_none_hash(sha256)
_model: list[ModelConfig] = []


def _model_config() -> ModelConfig:
    if not _model:
        folder = tempfile.mkdtemp()
        LlamaConfig(
            hidden_size=64, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64, vocab_size=1000,
            max_position_embeddings=8192, architectures=["LlamaForCausalLM"],
        ).save_pretrained(folder)  # fmt: skip
        _model.append(ModelConfig(folder, skip_tokenizer_init=True, dtype="float16", max_model_len=8192))
    return _model[0]


class Mended(Scheduler):
    """vLLM's, but blocks that a preempted request was about to fill in the same step cannot be found any more.

    Attributes:
        mended: such blocks.
    """

    mended = 0

    def _preempt_request(self, request: Request, timestamp: float) -> None:
        manager = self.kv_cache_manager
        held = manager.get_blocks(request.request_id).blocks[0]
        empty = {b.block_id for b in held[request.num_computed_tokens // BLOCK :] if b.block_hash is not None}
        self.mended += len(empty)
        manager.evict_blocks(empty)
        super()._preempt_request(request, timestamp)


def scheduler(case: Case, cls: type[Scheduler] = Scheduler, **options: Any) -> Scheduler:
    """A scheduler of this class for a case; `options` go into its SchedulerConfig."""
    model = _model_config()
    pool = case.kv_blocks + 1  # one is vLLM's null block
    config = VllmConfig(
        model_config=model,
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=case.caching),
        scheduler_config=SchedulerConfig(
            max_num_seqs=case.max_seqs, max_num_scheduled_tokens=case.budget,
            max_num_batched_tokens=max(case.budget, case.max_seqs) if case.chunked else 8192,
            max_model_len=8192, is_encoder_decoder=False,
            enable_chunked_prefill=case.chunked, long_prefill_token_threshold=case.threshold,
            policy="priority" if case.by_priority else "fcfs", scheduler_reserve_full_isl=case.full_input,
            watermark=(case.spare + 0.5) / pool, async_scheduling=issubclass(cls, AsyncScheduler), **options,
        ),
        device_config=DeviceConfig("cpu"),
    )  # fmt: skip
    config.cache_config.num_gpu_blocks = pool
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=pool, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


def request(case: Case, r: int) -> Request:
    """Request r of a case, its text such that blocks are alike exactly where the case says so."""
    own = range(10**6 * (r + 1), 10**6 * (r + 1) + case.prompt[r])
    common = [1000 * case.family[r] + j // BLOCK for j in range(case.shared[r] * BLOCK)]
    params = SamplingParams(max_tokens=case.max_new[r], stop_token_ids=[STOP], temperature=0.0)
    return Request(
        request_id=f"{r:06d}",
        prompt_token_ids=common + list(own)[len(common) :],
        sampling_params=params,
        pooling_params=None,
        arrival_time=float(case.arrival[r]),
        priority=case.priority[r],
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


def its_steps(
    case: Case, scheduler: Scheduler, most: int = 10**6, *, clock: Any = None, put_out: dict[int, int] | None = None
) -> list[Step]:
    """What this scheduler does with a case.

    A step without tokens takes no time, and its preemptions count for the next.

    Args:
        most: calls of `schedule`, after which it is taken to hang.
        clock: is told the time.
        put_out: gets the number of output tokens of each request.
    """
    steps: list[Step] = []
    now, upcoming, n = 0.0, 0, len(case.arrival)
    gone: list[int] = []
    seen: dict[str, int] = {}
    for _ in range(most):
        if clock is not None:
            clock.now = now
        while upcoming < n and case.arrival[upcoming] <= now:
            scheduler.add_request(request(case, upcoming))
            upcoming += 1
        if not scheduler.has_unfinished_requests():
            if upcoming == n:
                return steps
            now = float(case.arrival[upcoming])
            continue
        out = scheduler.schedule()
        for name, q in scheduler.requests.items():
            gone += [int(name)] * (q.num_preemptions - seen.get(name, 0))
            seen[name] = q.num_preemptions
        scheduled = out.num_scheduled_tokens
        sampled = []
        for name in scheduled:
            q, r = scheduler.requests[name], int(name)
            out_now = q.num_output_tokens
            done = q.num_computed_tokens >= q.num_tokens
            last = out_now + 1 == case.output[r]
            sampled.append([STOP if last else 10**9 + 10**5 * r + out_now] if done else [])
        if clock is not None and scheduled:
            clock.now = now + 1
        outputs = scheduler.update_from_output(
            out,
            ModelRunnerOutput(
                req_ids=list(scheduled), req_id_to_index={name: i for i, name in enumerate(scheduled)},
                sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
            ),
        )  # fmt: skip
        for one in (o for each in outputs.values() for o in each.outputs):
            if put_out is not None:
                put_out[int(one.request_id)] = put_out.get(int(one.request_id), 0) + len(one.new_token_ids)
        if scheduled:
            steps.append(Step(now, tuple((int(k), v) for k, v in scheduled.items()), tuple(sorted(gone))))
            gone = []
            now += 1
    raise AssertionError(f"case {case.seed}: not done after {most} calls of schedule()")
