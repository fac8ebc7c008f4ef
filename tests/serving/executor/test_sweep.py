"""What calibration measures: kinds of steps on an executor, among them those that follow decoding."""

from __future__ import annotations

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.serving.executor.build import make_executor
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.sweep import DECODING, TIMED, WARM, Bench, Mix, grid

CONFIG = EngineConfig(kv_blocks=200, max_seqs=8, max_len=400, token_budget=256, max_spec=8)


def test_a_step_behind_decoding_is_the_mixed_one_and_knows_what_ran_before() -> None:
    model = open_model("random:tiny", "cpu")
    executor = make_executor(model, CONFIG, late=True)
    bench = Bench(executor, CONFIG, model.spec.vocabulary)
    ran = []
    run = executor.run
    executor.run = lambda batch, until: (ran.append(len(batch.request)), run(batch, until))[1]  # type: ignore[method-assign]
    cost = bench.measure(Mix((20, 30), ((0, 16),), after_plain=True))
    assert ran == ([2] * DECODING + [3]) * (WARM + TIMED) + [2] * (WARM + TIMED)
    assert (cost.decodes, cost.prefills, cost.prefill_tokens) == (2, 1, 16)
    assert cost.read == 50 + 3 + 2 * ((DECODING + 1) * (WARM + TIMED // 2) + DECODING) - 1
    assert cost.seconds > 0
    assert cost.plain_before_s > 0


def test_every_mix_of_the_grid_fits_what_is_there() -> None:
    config = EngineConfig(kv_blocks=2000, max_seqs=64, max_len=4096, token_budget=1024, max_spec=8)
    mixes = grid(config, late=True)
    assert any(mix.after_plain for mix in mixes)
    assert any(mix.width > 1 for mix in mixes)
    for mix in mixes:
        assert max(mix.lengths()) <= config.max_len
        assert sum(-(-n // config.block_tokens) for n in mix.lengths()) <= config.kv_blocks
