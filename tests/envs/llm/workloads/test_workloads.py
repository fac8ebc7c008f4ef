"""The workloads by name: the same for one seed, of the shape they state, and twins like their traces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.envs import data_command
from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import traces, twins

MADE = [name for name in workloads.names() if name not in traces.TRACES]

# Published moments, from the files themselves: requests, requests/s, mean prompt, mean output, share of prompt blocks
# that an earlier prompt begins with.
PUBLISHED = {
    "azure-2023-conv": (19_366, 5.530, 1154.7, 211.1, 0.0),
    "azure-2023-code": (8_819, 2.567, 2047.8, 27.9, 0.0),
    "mooncake-conversation": (12_031, 3.400, 12_035.1, 342.6, 0.382),
    "mooncake-synthetic": (3_993, 3.907, 15_325.5, 149.1, 0.659),
    "sharegpt-300": (300, 10.296, 857.5, 652.5, 0.0),
    "arxiv-summarization": (28_257, 1.0, 2588.1, 291.4, 0.0),
}


def columns(w: Workload) -> list[object]:
    return [w.arrival_s.tolist(), w.prompt_tokens.tolist(), w.output_tokens.tolist(), w.hashes.tolist()]


def reuse(w: Workload) -> float:
    """Share of the prompts' blocks that an unbounded cache would have: leading blocks seen before."""
    seen: set[int] = set()
    hit = 0
    for k in range(len(w)):
        own = w.hashes[w.hash_ptr[k] : w.hash_ptr[k + 1]].tolist()
        fresh: Iterator[int] = (i for i, each in enumerate(own) if each not in seen)
        hit += next(fresh, len(own))
        seen.update(own)
    return hit / max(len(w.hashes), 1)


@pytest.mark.parametrize("name", MADE)
def test_a_seed_fixes_a_workload_and_another_seed_changes_it(name: str) -> None:
    one, same, other = (workloads.load(name, requests=40, seed=seed) for seed in (3, 3, 4))
    assert len(one) == 40
    assert columns(one) == columns(same)
    assert columns(one) != columns(other)
    assert one.name.startswith(name)


@pytest.mark.parametrize("name", MADE)
def test_rate_scale_shrinks_time_and_nothing_else(name: str) -> None:
    one, fast = (workloads.load(name, requests=30, rate_scale=scale) for scale in (1.0, 4.0))
    assert fast.arrival_s == pytest.approx(one.arrival_s / 4)
    assert columns(one)[1:] == columns(fast)[1:]


@pytest.mark.parametrize("name", twins.SHAPES)
def test_twins_have_the_published_moments(name: str) -> None:
    requests, rate, prompt, output, shared = PUBLISHED[name]
    w = workloads.load(f"{name}-twin")
    assert len(w) == requests
    assert len(w) / w.arrival_s[-1] == pytest.approx(rate, rel=1e-3)
    assert w.prompt_tokens.mean() == pytest.approx(prompt, rel=0.05 if requests > 1000 else 0.1)
    assert w.output_tokens.mean() == pytest.approx(output, rel=0.08)
    assert reuse(w) == pytest.approx(shared, abs=0.07)


@pytest.mark.parametrize("name", twins.SHAPES)
def test_twins_are_like_the_traces_themselves(name: str, public_data: Path) -> None:
    real, twin = workloads.load(name), workloads.load(f"{name}-twin")
    assert len(real) == len(twin) == traces.TRACES[name].requests
    assert twin.max_new_tokens[0] == real.max_new_tokens[0]
    few = len(real) < 1000
    for column in ("prompt_tokens", "output_tokens"):
        x, y = getattr(real, column), getattr(twin, column)
        assert y.mean() == pytest.approx(x.mean(), rel=0.08)
        for q in (0.25, 0.5, 0.75, 0.9, 0.95):
            assert np.quantile(y, q) == pytest.approx(np.quantile(x, q), rel=0.2 if few else 0.08, abs=2), (column, q)
    if name != "arxiv-summarization":  # which has no arrivals
        gaps, twin_gaps = np.diff(real.arrival_s), np.diff(twin.arrival_s)
        assert twin_gaps.std() / twin_gaps.mean() == pytest.approx(gaps.std() / gaps.mean(), rel=0.25)
    assert reuse(twin) == pytest.approx(reuse(real), abs=0.08)


@pytest.mark.parametrize("name", ["azure-2023-conv", "azure-2023-code", "mooncake-conversation", "mooncake-synthetic"])
def test_twins_come_in_bursts_like_their_traces(name: str, public_data: Path) -> None:
    def unrest(w: Workload, window_s: float) -> float:
        """Variance over mean of the arrivals in a window: 1 for Poisson."""
        count = np.histogram(w.arrival_s, np.arange(0, w.arrival_s[-1], window_s))[0]
        return float(count.var() / count.mean())

    real = workloads.load(name)
    drawn = [workloads.load(f"{name}-twin", seed=seed) for seed in range(4)]
    for window_s, within in ((1.0, 0.15), (10.0, 0.35), (60.0, 0.5)):
        mean = float(np.mean([unrest(w, window_s) for w in drawn]))
        assert mean == pytest.approx(unrest(real, window_s), rel=within), window_s


def test_published_moments_are_those_of_the_files(public_data: Path) -> None:
    for name, (requests, rate, prompt, output, shared) in PUBLISHED.items():
        w = workloads.load(name, rate_per_s=1.0 if name == "arxiv-summarization" else None)
        assert len(w) == requests
        assert len(w) / w.arrival_s[-1] == pytest.approx(rate, rel=0.02)
        assert (w.prompt_tokens.mean(), w.output_tokens.mean()) == pytest.approx((prompt, output), rel=1e-3)
        assert reuse(w) == pytest.approx(shared, abs=1e-3)


def test_fewer_requests_of_a_twin_are_its_first() -> None:
    more, fewer = (workloads.load("mooncake-conversation-twin", requests=n) for n in (300, 100))
    assert columns(more.take(np.arange(100))) == columns(fewer)


def test_past_future_distributions_stay_in_their_ranges() -> None:
    for distribution, prompt, output in (
        (1, (32, 4096), (2048, 4096)),
        (2, (3000, 5000), (3000, 5000)),
        (3, (2048, 4096), (32, 4096)),
    ):
        w = workloads.load("past-future", parameters={"distribution": distribution})
        assert (len(w), w.arrival_s[-1], w.slo_kind, w.ttft_slo_s[0], w.tpot_slo_s[0]) == (3000, 0, "max", 10, 1.5)
        for x, (low, high) in ((w.prompt_tokens, prompt), (w.output_tokens, output)):
            assert x.min() >= low
            assert x.max() <= high
            assert x.mean() == pytest.approx((low + high) / 2, rel=0.03)


def test_flow_prefill_classes_carry_their_slos_scaled() -> None:
    w = workloads.load("flow-prefill", parameters={"slo_scale": 0.5})
    assert w.class_names == ("text", "image", "search", "file")
    for k, (ttft, tbt) in enumerate(((0.25, 0.1), (0.5, 0.1), (4, 0.2), (6, 0.2))):
        mine = w.class_id == k
        assert mine.any()
        assert set(w.ttft_slo_s[mine]) == {ttft / 2}
        assert set(w.tpot_slo_s[mine]) == {tbt / 2}


def test_laps_classes_part_at_the_boundary() -> None:
    w = workloads.load("laps", requests=2000, parameters={"prefill_only": True})
    assert ((w.prompt_tokens > 256) == (w.class_id == 1)).all()
    assert (w.class_id == 0).mean() == pytest.approx(0.8, abs=0.03)
    assert (w.output_tokens == 1).all()


def test_batch_llm_members_of_a_group_begin_alike_and_others_do_not() -> None:
    w = workloads.load("batch-llm", requests=300)
    first = w.hashes[w.hash_ptr[:-1]]
    for i in range(0, 300, 7):
        for j in range(i):
            assert (first[i] == first[j]) == (w.program[i] == w.program[j])
    assert (np.diff(w.hash_ptr) == w.prompt_tokens // 16).sum() > 0
    assert (np.diff(w.hash_ptr) <= w.prompt_tokens // 16).all()
    assert reuse(w) > 0.5


def test_sessions_repeat_what_was_said() -> None:
    w = workloads.load("sessions", requests=400)
    # Every whole block of a turn's prompt that an earlier turn held, question and answer, has the same hash.
    for s in range(int(w.session.max()) + 1):
        turns = np.flatnonzero(w.session == s)
        assert (np.diff(w.prompt_tokens[turns]) > 0).all()
        for a, b in pairwise(turns.tolist()):
            said = w.hashes[w.hash_ptr[a] : w.hash_ptr[a + 1]]
            assert len(said) == (w.prompt_tokens[a] + w.output_tokens[a]) // 16
            again = w.hashes[w.hash_ptr[b] : w.hash_ptr[b + 1]]
            assert (again[: len(said)] == said).all()
            assert w.prompt_tokens[b] > w.prompt_tokens[a] + w.output_tokens[a]
    first = np.flatnonzero(w.class_id == 0)
    assert len({int(w.hashes[w.hash_ptr[k]]) for k in first}) == 1  # the system prompt
    assert len({int(w.hashes[w.hash_ptr[k] + 40]) for k in first if np.diff(w.hash_ptr)[k] > 40}) > 10


def test_tenants_send_by_their_skew_and_a_flood_is_one_more() -> None:
    w = workloads.load("tenants", requests=6000, parameters={"skew": 3.0, "num_tenants": 2, "flood": 0.25})
    count = np.bincount(w.tenant)
    assert count[2] == 1500
    assert count[0] / count[1] == pytest.approx(3, rel=0.1)
    assert w.class_names == ("tenant 0", "tenant 1", "flood")


def test_mc_sf_requests_fit_the_memory_in_the_name() -> None:
    sizes = set()
    for seed in range(30):
        w = workloads.load("mc-sf", seed=seed)
        memory = int(w.name.removeprefix("mc-sf-memory"))
        sizes.add(memory)
        assert 40 <= len(w) <= 60
        assert (w.prompt_tokens + w.output_tokens).max() <= memory
        assert 1 <= w.prompt_tokens.min() <= w.prompt_tokens.max() <= 5
    assert 30 <= min(sizes) < max(sizes) <= 50


def test_what_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPATCHGYM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = workloads.load
    with pytest.raises(UnknownNameError, match="did you mean 'azure-2023-conv"):
        load("azure-2023-con")
    with pytest.raises(UsageError, match="azure-2023-conv-twin is a synthetic workload of its shape"):
        load("azure-2023-conv")
    with pytest.raises(UsageError, match="requests is 0"):
        load("chat", requests=0)
    with pytest.raises(UsageError, match="rate_scale is nan"):
        load("chat", rate_scale=float("nan"))
    with pytest.raises(UsageError, match="takes no rate"):
        load("exspec", rate_per_s=1.0)
    with pytest.raises(UsageError, match="seed is -1"):
        load("chat", seed=-1)
    with pytest.raises(
        UnknownNameError, match="parameter of workload chat 'arival' is not known; did you mean 'arrival'"
    ):
        load("chat", parameters={"arival": "poisson"})
    with pytest.raises(UsageError, match="azure-2023-conv-twin takes no parameters"):
        load("azure-2023-conv-twin", parameters={"rate": 1})
    with pytest.raises(UsageError, match="distribution is 4"):
        load("past-future", parameters={"distribution": 4})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.csv")


def test_a_trace_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "azure_llm_2023_conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n"
    )
    monkeypatch.setenv("DISPATCHGYM_DATA", str(tmp_path))
    with pytest.raises(InvalidInstanceError, match="is not the published trace"):
        workloads.load("azure-2023-conv")


def test_a_trace_is_cut_to_its_first_requests(public_data: Path) -> None:
    whole, part = workloads.load("azure-2023-code"), workloads.load("azure-2023-code", requests=50)
    assert columns(part)[0] == whole.arrival_s[:50].tolist()
    with pytest.raises(UsageError, match="has 8819 requests, not 9000; its -twin has any number"):
        workloads.load("azure-2023-code", requests=9000)
    assert len(workloads.load("azure-2023-code-twin", requests=9000)) == 9000


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small trace in the place of a published one, served from a file URL, on a machine that has no traces."""
    served = tmp_path / "served.csv"
    served.write_bytes(b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.5,3,4\r\n")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    trace = replace(traces.TRACES["azure-2023-conv"], requests=1, url=served.as_uri(), sha256=digest)
    monkeypatch.setattr(traces, "TRACES", {"azure-2023-conv": trace})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DISPATCHGYM_DATA", raising=False)
    return served


def test_a_trace_is_downloaded_once_and_found_from_then_on(publisher: Path, tmp_path: Path) -> None:
    assert data_command.main(["get", "azure-2023-conv", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "served.csv").read_bytes() == publisher.read_bytes()
    publisher.unlink()
    assert workloads.load("azure-2023-conv").prompt_tokens.tolist() == [3]
    assert data_command.main(["get", "llm", "--out", str(tmp_path / "again")]) == 0


def test_a_download_that_is_something_else_is_refused_and_not_kept(publisher: Path, tmp_path: Path) -> None:
    publisher.write_bytes(b"an error page")
    with pytest.raises(InvalidInstanceError, match="is not the published trace"):
        data_command.main(["get", "azure-2023-conv", "--out", str(tmp_path / "out")])
    assert not traces.is_here("azure-2023-conv")
    publisher.unlink()
    with pytest.raises(UsageError, match="cannot be downloaded from file:"):
        traces.published("azure-2023-conv")


def test_the_list_shows_the_traces_and_their_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command.main(["list", "--family", "llm"]) == 0
    printed = capsys.readouterr().out
    for name, trace in traces.TRACES.items():
        assert f"{name} " in printed
        assert trace.sha256[:12] in printed
    assert "CC-BY 4.0" in printed
