"""The whole executor on a GPU, captured steps and kernels included, judged by a dense float32 pass over its texts."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs a GPU")]

from dispatchgym.envs.llm.config import EngineConfig  # noqa: E402
from dispatchgym.envs.llm.engine import Engine  # noqa: E402
from dispatchgym.envs.llm.policy import EngineSpec  # noqa: E402
from dispatchgym.envs.llm.setup import fresh_state  # noqa: E402
from dispatchgym.envs.llm.state import ENDED  # noqa: E402
from dispatchgym.envs.llm.workload import Workload  # noqa: E402
from dispatchgym.serving.executor.build import make_executor, rough_profile  # noqa: E402
from dispatchgym.serving.executor.inputs import HostStep, pack, unpack  # noqa: E402
from dispatchgym.serving.executor.model import Decoder  # noqa: E402
from dispatchgym.serving.executor.ops import TorchOps  # noqa: E402
from dispatchgym.serving.executor.sampling import Draws, draw  # noqa: E402
from dispatchgym.serving.executor.sampling_params import Sampling  # noqa: E402
from dispatchgym.serving.executor.shapes import shape  # noqa: E402
from dispatchgym.serving.executor.weights import LayerWeights, Linear, Model, Weights, random_weights  # noqa: E402
from dispatchgym.solvers.llm.vllm import Vllm  # noqa: E402


def models(qk_norm: bool) -> tuple[Model, Decoder]:
    """A tiny model in bfloat16 with head dimension 64, and the same numbers in float32 over plain torch."""
    spec = replace(shape("tiny"), heads=6, kv_heads=2, head_dim=64, hidden=256, vocabulary=4096, qk_norm=qk_norm)
    spec = replace(spec, inv_freq=tuple(10_000.0 ** (-i / 64) for i in range(0, 64, 2)))
    device = torch.device("cuda")
    drawn = random_weights(spec, device, torch.bfloat16)
    wide = (4 * drawn.embedding).contiguous()
    weights = replace(drawn, embedding=wide, head=wide)

    def linear(x: Linear) -> Linear:
        return Linear(x.weight.float(), None)

    layers = tuple(
        LayerWeights(
            w.attention_norm.float(), linear(w.qkv), None if w.q_norm is None else w.q_norm.float(),
            None if w.k_norm is None else w.k_norm.float(), linear(w.out), w.mlp_norm.float(), linear(w.gate_up),
            linear(w.down),
        )
        for w in weights.layers
    )  # fmt: skip
    plain = Weights(wide.float(), layers, weights.norm.float(), wide.float())
    cache = torch.zeros(spec.layers, 2, 33, 16, spec.kv_heads, spec.head_dim, device=device)
    return Model(spec, weights, device, torch.bfloat16), Decoder(spec, plain, cache, TorchOps())


@torch.inference_mode()
def judged(decoder: Decoder, text: list[int], first: int, sampling: Sampling) -> float:
    """Share of the tokens from `first` on that a dense float32 pass would draw too, or whose logit misses the drawn
    one's by less than rounding can explain."""
    device, n = decoder.cache.device, len(text) - 1
    ids = np.array(text[:-1], np.int32)
    host = HostStep(
        ids, np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([n], np.int32),
        np.arange(first - 1, n, dtype=np.int32), 0,
    )  # fmt: skip
    table = torch.arange(32, dtype=torch.int32, device=device)[None]
    step = unpack(torch.from_numpy(pack(host)).to(device), table, host)
    logits = decoder.forward(step, torch.zeros(1, dtype=torch.int32, device=device))
    rows = len(logits)
    draws = Draws(
        torch.full((rows,), sampling.temperature, device=device),
        torch.full((rows,), sampling.top_k, dtype=torch.int32, device=device),
        torch.full((rows,), sampling.top_p, device=device), torch.full((rows,), sampling.seed, device=device),
        torch.arange(first - 1, n, dtype=torch.int32, device=device), sampling.temperature == 0,
        bool(sampling.top_k or sampling.top_p < 1),
    )  # fmt: skip
    mine = torch.tensor(text[first:], device=device)
    if sampling.temperature > 0:
        return float((draw(logits, draws) == mine).float().mean())
    missed = logits.amax(-1) - logits.gather(1, mine[:, None])[:, 0]
    return float((missed < 0.05 * logits.std(-1)).float().mean())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("graphs", "passes"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_texts_are_what_a_dense_pass_says(late: bool, graphs: bool, passes: bool, qk_norm: bool) -> None:
    """40 requests over few blocks: mixed steps, preemption, prefixes shared, all sizes of captured steps."""
    model, plain = models(qk_norm)
    config = EngineConfig(kv_blocks=150, max_seqs=20, max_len=512, token_budget=128)
    executor = make_executor(model, config, graphs=graphs, passes=passes, late=late)
    profile = rough_profile(model, config)
    none = np.zeros(0)
    state = fresh_state(Workload(none, none, none, hash_block=16), config, profile, 0, steps=False, tokens=False)
    engine = Engine(state, Vllm(), EngineSpec(config, profile, 150), executor=executor, clock=time.perf_counter)
    rng = np.random.default_rng(0)
    common = rng.integers(0, 4096, 64).astype(np.int32)
    asked: dict[int, tuple[np.ndarray, Sampling]] = {}
    shares = []
    for i in range(40):
        own = rng.integers(0, 4096, int(rng.integers(1, 200))).astype(np.int32)
        shared = bool(rng.random() < 0.4)
        prompt = np.concatenate([common, own]) if shared else own
        sampling = Sampling(
            max_new=int(rng.integers(1, 150)), temperature=[0.0, 0.0, 0.0, 0.7][i % 4], top_k=[0, 30][i % 2], seed=i,
            stop=tuple(rng.integers(0, 4096, 40).tolist()),
        )  # fmt: skip
        hashes = np.concatenate([[7, 77, 777, 7777] if shared else [], 100 + 1000 * i + np.arange(len(own) // 16)])
        r = engine.submit(len(prompt), sampling.max_new, hashes=hashes.astype(np.int64))
        executor.add(r, prompt, sampling)
        asked[r] = prompt, sampling
    while engine.step():
        pass
    executor.flush()
    assert int(engine.state.req["preemptions"].sum()) > 0
    assert int(engine.state.eng["free"][0]) == 150
    for r, (prompt, sampling) in asked.items():
        assert engine.state.req["state"][r] == ENDED
        out = executor.outputs(r).ids.tolist()
        assert len(out) == engine.state.req["generated"][r]
        ends = [token in sampling.stop for token in out]
        assert not any(ends[:-1])
        assert ends[-1] or len(out) == sampling.max_new
        shares.append((judged(plain, [*prompt.tolist(), *out], len(prompt), sampling), len(out)))
    share, count = np.array(shares).T
    assert np.average(share, weights=count) > 0.97


def test_captured_steps_say_what_uncaptured_ones_say() -> None:
    """Alone in the batch, with a graph of one row: the same kernels on the same numbers."""
    model, _ = models(False)
    config = EngineConfig(kv_blocks=40, max_seqs=1, max_len=512, token_budget=128)
    texts = []
    for graphs in (False, True):
        executor = make_executor(model, config, graphs=graphs)
        profile = rough_profile(model, config)
        none = np.zeros(0)
        state = fresh_state(Workload(none, none, none), config, profile, 0, steps=False, tokens=False)
        engine = Engine(state, Vllm(), EngineSpec(config, profile, 40), executor=executor, clock=time.perf_counter)
        r = engine.submit(50, 300)
        executor.add(r, np.arange(50, dtype=np.int32), Sampling(300, temperature=0.8, top_p=0.9, seed=3))
        while engine.step():
            pass
        executor.flush()
        texts.append(executor.outputs(r).ids.tolist())
    assert texts[0] == texts[1]
