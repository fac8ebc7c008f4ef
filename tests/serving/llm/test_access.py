"""Keys, tenants, rates, sizes; and that no secret is told."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.llm.access import MOST_TENANTS, KeyRing, LlmGate, RateLimits
from tests.serving.llm.live import serving

ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"


def key_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["", "# nobody\n", "alice\n", "alice short\n", f"alice {ALICE} more\n"])
def test_a_file_that_holds_no_proper_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="key"):
        KeyRing(key_file(tmp_path, text))


def test_a_key_tells_the_tenant_and_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"# people\nalice {ALICE}\nbob {BOB}\n")
    ring = KeyRing(path)
    assert [ring.tenant_of(k.encode()) for k in (ALICE, BOB, ALICE[:-1], "")] == ["alice", "bob", None, None]
    path.write_text(f"bob {BOB}\n")
    assert ring.tenant_of(ALICE.encode()) is None
    path.write_text("nonsense")
    assert ring.tenant_of(BOB.encode()) is None  # a file that cannot be read lets nobody in
    path.unlink()
    assert ring.tenant_of(BOB.encode()) is None


def test_keys_are_demanded_and_name_the_tenant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    gate = LlmGate(KeyRing(key_file(tmp_path, f"alice {ALICE}\nbob {BOB}\n")), max_bytes=2000)
    rates = RateLimits(2, float("inf"), lambda: 0.0)
    body = {"model": "letters", "prompt": "hunter2", "max_tokens": 2}
    with serving(access=gate, rates=rates) as live, httpx.Client(base_url=live.url, timeout=60) as http:

        def ask(key: str, **more: object) -> httpx.Response:
            return http.post("/v1/completions", json={**body, **more}, headers={"authorization": f"Bearer {key}"})

        for path in ("/v1/models", "/status", "/metrics"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"authorization": f"Bearer {BOB}"}).status_code == 200
        for path in ("/healthz", "/readyz", "/"):
            assert http.get(path).status_code == 200
        refused = ask("wrong-" + ALICE)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert "show a valid API key as the bearer token" in refused.json()["error"]["message"]
        assert ask(ALICE, tenant="bob").status_code == 400
        assert [ask(ALICE).status_code for _ in range(3)] == [200, 200, 429]
        assert ask(BOB, tenant="bob").status_code == 200
        assert ask(BOB, prompt="x" * 2000).status_code == 413
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("dispatchgym", "uvicorn")))
    assert not any(secret in ours for secret in (ALICE, BOB, "hunter2"))


def test_rates_fill_up_again_and_large_requests_are_paid_for_afterwards() -> None:
    now = [0.0]
    rates = RateLimits(60, 600, lambda: now[0])
    assert rates.take("a", 1, 100) == 0
    assert rates.take("a", 1, 501) == pytest.approx(0.1)  # 500 are left, 10 come a second
    assert rates.take("a", 1, 500) == 0
    now[0] = 30.0
    assert rates.take("a", 1, 300) == 0
    now[0] = 90.0
    assert rates.take("a", 1, 6000) == 0  # full: let in
    now[0] = 150.0
    assert rates.take("a", 1, 1) == pytest.approx(480.1)  # and owed: 6000 - 600 - 600 at 10 a second, and one more
    assert rates.take("b", 1, 1) == 0


def test_tenants_that_are_remembered_are_bounded() -> None:
    rates = RateLimits(1, float("inf"), lambda: 0.0)
    for i in range(MOST_TENANTS + 5):
        assert rates.take(f"t{i}", 1, 1) == 0
    assert rates.take(f"t{MOST_TENANTS + 4}", 1, 1) > 0
    assert rates.take("t0", 1, 1) == 0  # forgotten
