"""The page at /: what it loads, and, where a browser is at hand, what it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from tests.serving.llm.live import eventually, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_loads_nothing_from_elsewhere() -> None:
    with serving() as live:
        page = httpx.get(live.url)
    assert not re.search(r"""(src|href|url|@import|import)\s*[=(]?\s*["']?(https?:)?//""", page.text)
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_queue_the_batch_and_the_scheduler(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    with serving(engine={"max_seqs": 2}) as live:
        live.gate.slow.set()
        body = {"model": "letters", "prompt": "a secret prompt", "max_tokens": 900, "tenant": "<b>t"}

        def ask() -> None:
            httpx.post(f"{live.url}/v1/completions", json=body, timeout=300)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: sum(s.generated > 3 for s in live.frontend.sequences) == 2)
        live.gate.is_open.clear()  # and there it stands still
        found = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=4000", "--dump-dom", live.url],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        live.gate.slow.clear()
        live.gate.is_open.set()
        for thread in threads:
            thread.join()
    for name, value in (("scheduler", "vllm"), ("waiting", "3"), ("running", "2"), ("kv_of", r"\d+ of 256")):
        assert re.search(rf'id="{name}"[^>]*>{value}<', found), name
    assert len(re.findall(r"<tr><td>\d+</td>", found)) == 5
    assert "&lt;b&gt;t" in found  # names are text, not markup
    assert "<b>t" not in found
    assert found.count("<polyline") >= 2
    assert "secret prompt" not in found
