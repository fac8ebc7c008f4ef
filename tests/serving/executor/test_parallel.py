"""One engine over two processes says what one process says."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.parallel import Leader, follow, orders_group
from dispatchgym.serving.executor.shares import Share
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from tests.serving.executor.engines import Bench, prompts
from tests.serving.executor.models import plain_greedy, save


def run_share(rank: int, folder: str, meeting: str) -> None:
    """A process's part: the model's share in an executor of the sizes that `Bench` gives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    orders = orders_group()
    executor = TorchExecutor(
        open_model(folder, "cpu", share=Share(rank, 2)), kv_blocks=64, max_seqs=8, max_len=256, host_blocks=20
    )
    follow(executor, orders)
    dist.destroy_process_group()


def test_two_shares_say_what_the_whole_says(tmp_path: Path) -> None:
    family = "qwen2"  # which has biases
    save(family, tmp_path / "model")
    folder, meeting = str(tmp_path / "model"), str(tmp_path / "meeting")
    follower = multiprocessing.get_context("spawn").Process(target=run_share, args=(1, folder, meeting), daemon=True)
    follower.start()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=2)
    try:
        orders = orders_group()
        bench = Bench(family, token_budget=24, host_blocks=20)
        leader = Leader(
            TorchExecutor(
                open_model(folder, "cpu", share=Share(0, 2)), kv_blocks=64, max_seqs=8, max_len=256, host_blocks=20
            ),
            orders,
        )
        bench.executor = bench.engine._executor = leader  # type: ignore[assignment]
        asked = list(zip(prompts(6, 30, 5, 61), (12, 20, 9), strict=True))
        requests = [bench.submit(prompt, count) for prompt, count in asked]
        drawing = bench.submit(asked[0][0], 5, temperature=0.8, top_p=0.9, seed=4, stop=(7, 9))
        bench.run()
        assert [bench.text(r) for r in requests] == [plain_greedy(family, *each) for each in asked]
        assert len(bench.text(drawing)) >= 1
        leader.remove(requests[0])
        leader.close()
        follower.join(60)
        assert follower.exitcode == 0
    finally:
        dist.destroy_process_group()
        follower.kill()


def test_shares_that_cannot_be_are_refused(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with pytest.raises(UsageError, match="heads 4 cannot be divided among 3 devices"):
        open_model(str(tmp_path), "cpu", share=Share(0, 3))


def test_the_shares_of_a_layer_add_up(tmp_path: Path) -> None:
    """Matrices by their rows and columns, against the whole."""
    save("qwen2", tmp_path)
    whole = open_model(str(tmp_path), "cpu").weights.layers[1]
    parts = [open_model(str(tmp_path), "cpu", share=Share(k, 2)).weights.layers[1] for k in range(2)]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32))
    added = sum(x[:, k * 40 : (k + 1) * 40] @ parts[k].down.weight.T for k in range(2))
    torch.testing.assert_close(added, x @ whole.down.weight.T)
    assert parts[1].qkv.bias is not None
    assert whole.qkv.bias is not None
    assert torch.equal(parts[1].qkv.weight[:24], whole.qkv.weight[24:48])
    assert torch.equal(parts[1].qkv.bias[24:36], whole.qkv.bias[60:72])
