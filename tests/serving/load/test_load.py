"""Traffic for live servers: prompts, times, what is made of the answers, and comparisons."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.llm.access import LlmGate
from dispatchgym.serving.llm.messages import Switched
from dispatchgym.serving.llm.sequences import UnavailableError
from dispatchgym.serving.load import compare_command
from dispatchgym.serving.load.client import Outcome, Target
from dispatchgym.serving.load.command import main as load_main
from dispatchgym.serving.load.comparison import WINDOWS, compared, verdict, window_values
from dispatchgym.serving.load.prompts import LETTERS, WORDS, Ruler, ids_of, ruler_from, text_of
from dispatchgym.serving.load.run import LoadRun, Style, body_of, drive, headers_of, summed_up
from dispatchgym.serving.load.servers import Server, started
from dispatchgym.serving.load.traffic import Traffic
from tests.serving.llm.live import Live, language, serving


def workload(n: int = 6, gap_s: float = 0.01, **columns: Any) -> Workload:
    """Requests of 40 + i prompt and 5 output tokens; the first two blocks of 16 are everybody's."""
    hashes = np.concatenate([[1, 2, 100 + i] for i in range(n)])
    made: dict[str, Any] = {
        "arrival_s": np.arange(n) * gap_s, "prompt_tokens": 50 + np.arange(n), "output_tokens": np.full(n, 5),
        "ttft_slo_s": np.full(n, 60.0), "hash_ptr": 3 * np.arange(n + 1), "hashes": hashes, "hash_block": 16,
    }  # fmt: skip
    return Workload(**{**made, **columns})


# --- prompts ---


def test_prompts_have_the_token_counts_and_shared_beginnings_of_the_trace() -> None:
    work = workload()
    ruler = Ruler(LETTERS)
    texts = [text_of(work, i, ruler) for i in range(6)]
    counts = [len(language().encode(text)) for text in texts]
    assert counts == work.prompt_tokens.tolist()
    assert len({text[:32] for text in texts}) == 1
    assert len({text[:48] for text in texts}) == 6  # the third block is everyone's own
    ids = [ids_of(work, i, 200) for i in range(6)]
    assert [len(each) for each in ids] == work.prompt_tokens.tolist()
    assert ids[0][:32] == ids[5][:32]
    assert ids[0][32:48] != ids[5][32:48]
    assert max(map(max, ids)) < 200
    assert text_of(work, 0, ruler, salt=1)[:32] != texts[0][:32]


def test_every_run_has_texts_of_its_own() -> None:
    traffic = Traffic()
    assert traffic.style.salt != traffic.style.salt
    assert replace(traffic.style, salt=0) == replace(traffic.style, salt=0)


def test_a_server_that_counts_otherwise_is_followed() -> None:
    ruler = ruler_from(WORDS, (24, 24 * 3 + 2), (96, 96 * 3 + 2))  # three tokens a word, and two besides
    assert (ruler.per_piece, ruler.extra) == (3.0, 2.0)
    assert ruler.count(302) == 100
    work = workload(2, prompt_tokens=np.array([302, 3000]))
    texts = [text_of(work, i, ruler).split() for i in range(2)]
    assert len(texts[0]) == 100
    assert texts[0][:11] == texts[1][:11]  # two blocks of 16 tokens are 10.67 words


# --- against a live server ---


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as one:
        yield one


def run(live: Live, work: Workload, style: Style | None = None) -> LoadRun:
    async def go() -> LoadRun:
        target = Target(live.url)
        try:
            return await drive(target, work, style or Style())
        finally:
            await target.close()

    return asyncio.run(go())


@pytest.mark.parametrize("style", [Style(), Style(chat=True), Style(prompts="ids", vocabulary=250)])
def test_every_request_is_sent_once_and_its_tokens_are_counted(live: Live, style: Style) -> None:
    found = run(live, workload(), style)
    assert found.statuses == {"200": 6}
    assert found.record.requests.generated.tolist() == [5] * 6
    m = found.metrics
    assert (m.finished, m.attainment) == (6, 1.0)
    assert m.goodput_rps == pytest.approx(6 / m.duration_s)
    assert found.prompt_error == pytest.approx(0.0 if not style.chat else np.mean([5 / (50 + i) for i in range(6)]))
    assert np.all(found.record.ttft_s > 0)
    if not style.chat:
        assert found.record.requests.cached_tokens.max() >= 32  # the shared beginning was found


def test_a_server_that_stalls_is_charged_from_when_requests_were_due(live: Live) -> None:
    """Open loop: while the server is held, requests keep being sent, and all of them count as waiting since then."""

    async def go() -> LoadRun:
        target = Target(live.url)
        await target.find_model()
        task = asyncio.create_task(drive(target, workload(8, gap_s=0.02), Style(prompts="ids", vocabulary=250)))
        live.gate.is_open.clear()
        while len(list(live.frontend.sequences)) < 8:  # nobody's answer is waited for
            await asyncio.sleep(0.005)
        live.gate.is_open.set()
        try:
            return await task
        finally:
            await target.close()

    found = asyncio.run(go())
    assert found.statuses == {"200": 8}
    waited = found.record.ttft_s
    held_until = found.record.requests.first_token_s.min()
    assert np.all(waited >= held_until - found.record.workload.arrival_s - 1e-6)
    assert waited[0] > 0.13  # from when it was due, while seven more were sent 20 ms apart


def test_of_a_run_that_is_cut_short_nothing_goes_on() -> None:
    async def go(live: Live) -> set[asyncio.Task[Any]]:
        target = Target(live.url)
        run = asyncio.create_task(drive(target, workload(gap_s=1000.0), Style(prompts="ids", vocabulary=200)))
        while not list(live.frontend.sequences):
            await asyncio.sleep(0)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await target.close()
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    with serving() as live:
        live.gate.is_open.clear()
        try:
            assert asyncio.run(go(live)) == set()
        finally:
            live.gate.is_open.set()


def test_what_is_asked_names_bounds_tenant_and_session() -> None:
    work = workload(2, tenant=np.array([3, 4]), session=np.array([7, -1]), tpot_slo_s=np.array([0.05, np.inf]))
    assert headers_of(work, 0) == {
        "x-tenant": "tenant-3", "x-priority": "0", "x-ttft-slo-ms": "60000", "x-tpot-slo-ms": "50",
        "x-session-id": "session-7",
    }  # fmt: skip
    assert "x-session-id" not in headers_of(work, 1)
    body = body_of(work, 0, "m", Style(ignore_eos=False), Ruler(LETTERS))
    assert "ignore_eos" not in body
    assert body["max_tokens"] == 5


def test_the_load_command_writes_what_it_prints(live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    trace = ["--trace", "azure-2023-conv-twin", "--requests", "8", "--rate", "200"]
    cut = ["--longest-prompt", "60", "--longest-output", "4", "--ttft-slo", "100", "--tpot-slo", "100"]
    assert load_main([*trace, *cut, "--target", live.url, "--json", str(out)]) == 0
    said = json.loads(out.read_text())
    assert said["statuses"] == {"200": 8}
    assert len(said["requests"]) == 8
    assert said["metrics"]["attainment"] == 1.0
    assert "100.0 % met every" in " ".join(capsys.readouterr().out.split())


def test_a_rate_moves_arrivals_closer() -> None:
    work, notes = Traffic(trace="azure-2023-conv-twin", requests=50, rate=100.0, longest_output=3).workload()
    assert 49 / work.arrival_s[-1] - work.arrival_s[0] == pytest.approx(100, rel=0.05)
    assert work.output_tokens.max() == 3
    assert any("cut" in note for note in notes)
    with pytest.raises(UsageError, match="--rate"):
        Traffic(rate=-1.0).workload()


def test_a_trace_that_is_not_here_is_named_whatever_the_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISPATCHGYM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="azure-2023-conv is not on this machine"):
        Traffic(trace="azure-2023-conv", rate=5.0).workload()


# --- servers of other makes, and broken ones ---


class _Odd(BaseHTTPRequestHandler):
    """Lists a model; then breaks off, refuses, or sends nonsense."""

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(200, b'{"data":[{"id":"odd"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind = body["seed"] % 4
        if kind == 0:
            self._send(429, b'{"error":"busy"}')
        elif kind == 1:
            self._send(200, b'data: {"choices":[{"text":"a"}]}\n\n')  # no [DONE]
        elif kind == 2:
            self._send(200, b"data: {nonsense\n\n")
        else:
            self._send(200, b'data: {"choices":[{"text":"a"}]}\n\ndata: {"error":{"message":"gone"}}\n\n')

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_answers_that_are_not_whole_count_as_what_they_are() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    async def go() -> LoadRun:
        target = Target(f"http://127.0.0.1:{server.server_address[1]}/v1/")
        try:
            return await drive(target, workload(4), Style(prompts="ids"))
        finally:
            await target.close()

    try:
        found = asyncio.run(go())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found.statuses == {"200": 0, "429": 1, "broken": 3} or found.statuses == {"429": 1, "broken": 3}
    assert [o.error for o in found.outcomes] == [
        '{"error":"busy"}', "the stream ended early", "an event that is no JSON", "{'message': 'gone'}",
    ]  # fmt: skip
    assert (found.metrics.finished, found.metrics.rejected, found.metrics.aborted) == (0, 1, 3)
    assert found.metrics.goodput_rps == 0
    said = StringIO()
    compare_command.print_answers({"odd": [found, found]}, Console(file=said))
    assert said.getvalue() == "odd: of 8 answers 429: 2, broken: 6\n"


def test_a_server_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(UsageError, match="no list of models"):
        asyncio.run(drive(Target("http://127.0.0.1:9"), workload(), Style()))


def test_what_the_server_says_of_a_refusal_is_passed_on(live: Live) -> None:
    async def go() -> None:
        target = Target(live.url, model="gpt-9")
        try:
            await drive(target, workload(), Style())
        finally:
            await target.close()

    with pytest.raises(UsageError, match=r"HTTP 404: .*this server serves the model 'letters'"):
        asyncio.run(go())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_sent(live: Live, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out.json")
    with pytest.raises(UsageError, match="cannot write in"):
        load_main(["--requests", "1", "--target", live.url, "--json", out])
    with pytest.raises(UsageError, match="cannot write in"):
        compare_command.main(["--requests", "1", "--targets", f"a={live.url},b={live.url}", "--json", out])


@pytest.mark.parametrize("text", ["alice sk-hunter2\nbob sk-hunter3\n", "sk-hunter2\x00", "sk-hunter2-ä", ""])
def test_a_file_that_holds_no_single_key_is_refused_without_quoting_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        _ = Traffic(api_key_file=file).api_key
    assert "key" in str(refused.value)
    assert "hunter" not in str(refused.value)
    file.write_text(" sk-hunter2\n")
    assert Traffic(api_key_file=file).api_key == "sk-hunter2"
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(UsageError, match="OPENAI_API_KEY: must hold one key"):
        _ = Traffic().api_key


# --- comparisons ---


def made_run(ttft_s: np.ndarray[Any, Any], gap_s: float = 0.1) -> LoadRun:
    """A run whose first tokens came after these times; bound 1 s."""
    n = len(ttft_s)
    work = workload(n, gap_s=gap_s, ttft_slo_s=np.ones(n))
    outcomes = [
        Outcome(i * gap_s, i * gap_s, i * gap_s + t + 0.4, [i * gap_s + t + 0.1 * k for k in range(5)], 200)
        for i, t in enumerate(ttft_s)
    ]
    return summed_up(work, outcomes, "made")


def test_windows_hold_goodput_and_means_by_hand() -> None:
    ttft = np.full(101, 0.5)
    ttft[:10] = 2.0  # the first window misses its bound
    found = made_run(ttft)
    goodput = window_values(found, "goodput")
    assert len(goodput) == WINDOWS
    assert goodput[0] == 0.0
    assert goodput[1] == pytest.approx(10.0)
    assert goodput[9] == pytest.approx(11.0)  # with the one that comes at the very end
    assert window_values(found, "attainment")[:2] == [0.0, 100.0]
    assert window_values(found, "first token")[:2] == pytest.approx([2000.0, 500.0])
    assert window_values(found, "per token")[3] == pytest.approx(100.0)


def test_a_difference_is_told_where_the_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    slow = [made_run(rng.uniform(0.5, 2.0, 200)) for _ in range(3)]
    fast = [made_run(run.record.ttft_s * 0.5) for run in slow]
    rows = compared({"slow": slow, "fast": fast, "slow again": slow})
    paired = rows[1].against["first token"]
    assert paired is not None
    assert paired.mean == pytest.approx(-0.5 * rows[0].means["first token"])
    said = verdict(rows).splitlines()
    assert "fast gives" in said[0]
    assert "more goodput than slow" in said[0]
    assert "slow again: no difference to slow is shown" in said[1]
    assert math.isclose(rows[2].against["goodput"].mean, 0.0)  # type: ignore[union-attr]


def test_compare_switches_a_running_server_and_prints_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "admin"
    token.write_text("an-administrators-token")
    out = tmp_path / "compare.json"
    with serving(access=LlmGate(admin_token_file=token)) as live:
        argv = [
            "--target", live.url, "--admin-token-file", str(token), "--schedulers", "vllm,sarathi", "--rounds", "2",
            "--trace", "azure-2023-conv-twin", "--requests", "12", "--rate", "150", "--longest-prompt", "50",
            "--longest-output", "4", "--json", str(out),
        ]  # fmt: skip
        assert compare_command.main(argv) == 0
        assert live.frontend.history == ["vllm", "vllm", "sarathi", "sarathi", "vllm"]  # rounds begin in turns
    said = json.loads(out.read_text())
    assert [row["name"] for row in said["rows"]] == ["vllm", "sarathi"]
    assert all(run["statuses"] == {"200": 12} for runs in said["runs"].values() for run in runs)
    first, second = (runs[0]["requests"] for runs in said["runs"].values())
    assert [r["prompt_tokens"] for r in first] == [r["prompt_tokens"] for r in second]  # the same trace
    assert said["decisions"]["vllm"] == [{"p50_ms": None, "p99_ms": None, "faults": {}}] * 2  # inside the engine
    assert "sarathi - vllm" in capsys.readouterr().out


def test_compare_starts_one_server_of_its_own_and_says_what_decisions_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.json"
    argv = [
        "--demo", "--schedulers", "vllm,edf,past-future", "--rounds", "1", "--trace", "azure-2023-conv-twin",
        "--requests", "8", "--rate", "100", "--longest-prompt", "40", "--longest-output", "4", "--json", str(out),
        "--", "--kv-blocks", "300", "--policy-budget-ms", "60000",
    ]  # fmt: skip
    assert compare_command.main(argv) == 0
    said = json.loads(out.read_text())
    assert all(run["statuses"] == {"200": 8} for runs in said["runs"].values() for run in runs)
    asked = said["decisions"]["past-future"][0]
    assert asked["faults"] == {}
    assert 0 < asked["p50_ms"] <= asked["p99_ms"]
    assert "past-future: a decision took" in capsys.readouterr().out


def test_a_comparison_leaves_a_running_server_as_it_was(tmp_path: Path) -> None:
    token = tmp_path / "admin"
    token.write_text("an-administrators-token")
    with serving(access=LlmGate(admin_token_file=token), scheduler="edf") as live:
        argv = ["--target", live.url, "--admin-token-file", str(token), "--schedulers", "vllm,sarathi", "--rounds", "1"]
        cut = ["--requests", "4", "--rate", "150", "--longest-prompt", "50", "--longest-output", "4"]
        assert compare_command.main([*argv, *cut]) == 0
        assert live.frontend.history == ["edf", "vllm", "sarathi", "edf"]
        with pytest.raises(UsageError, match="/admin/scheduler: HTTP 401"):
            asyncio.run(Server(live.url, "not-the-token").scheduler())


def test_a_switch_waits_for_an_engine_that_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "admin"
    token.write_text("an-administrators-token")
    with serving(access=LlmGate(admin_token_file=token)) as live:
        switch, refused = live.frontend.switch, [UnavailableError("the engine is being started; ask again")]

        async def later(scheduler: str) -> Switched:
            if refused:
                raise refused.pop()
            return await switch(scheduler)

        monkeypatch.setattr(live.frontend, "switch", later)
        asyncio.run(Server(live.url, "an-administrators-token").switch("sarathi"))
        assert live.frontend.history == ["vllm", "sarathi"]
    assert not refused


def test_an_option_that_the_started_server_does_not_know_is_named() -> None:
    async def go() -> None:
        async with started(["--demo", "--colour", "red"]):
            pass

    with pytest.raises(UsageError, match="--colour"):
        asyncio.run(go())


def test_a_server_that_does_not_start_says_why() -> None:
    async def go() -> None:
        async with started(["--demo", "--kv-blocks", "1", "--max-len", "4096"]):
            pass

    with pytest.raises(UsageError, match="hold no text of max_len 4096"):
        asyncio.run(go())


def test_rounds_send_the_next_stretch_of_a_recorded_trace(tmp_path: Path) -> None:
    rows = [{"arrival_s": 0.1 * k, "prompt_tokens": 10 + k, "output_tokens": 3} for k in range(10)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    traffic = Traffic(trace=str(trace), requests=4, skip=1)
    sent = [traffic.workload(part)[0].prompt_tokens.tolist() for part in range(3)]
    assert sent == [[11, 12, 13, 14], [15, 16, 17, 18], [12, 13, 14, 15]]  # the third begins anew: 9 % 7 = 2


@pytest.mark.parametrize(
    "change",
    [{"demo": True, "target": "x"}, {}, {"target": "x"}, {"demo": True, "schedulers": "vllm"}, {"targets": "a,b"},
     {"demo": True, "rounds": 0}, {"demo": True, "schedulers": "vllm,vllm"},
     {"demo": True, "schedulers": "vllm,mc-sf"}],
)  # fmt: skip
def test_comparisons_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        compare_command.check(replace(compare_command.Options(), **change))
