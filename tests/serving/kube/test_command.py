"""`dispatchgym serve kube` as a process, and what it refuses to start."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dispatchgym.cli import main
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.live import eventually
from tests.serving.kube.objects import node, pod


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "best-fitt"], "did you mean 'best-fit'"),
        (["--policy", "bundle:jobshop-classic"], "jobshop, not for packing"),
        (["--policy", "best-fit", "--host", "0.0.0.0"], "could steer the scheduler"),
        (["--policy", "best-fit", "--host", "example.org", "--token-file", "TOKEN"], "in the clear"),
        (["--policy", "best-fit", "--token-file", "/nowhere/token"], "holds no token"),
        (["--policy", "best-fit", "--tls-cert", "TOKEN"], "belong together"),
        (["--policy", "best-fit", "--client-ca", "TOKEN"], "needs --tls-cert"),
        (["--policy", "best-fit", "--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"], "/nowhere/c: is not a file"),
        (["--policy", "best-fit", "--bind"], "--bind needs the cluster"),
        (["--policy", "best-fit", "--in-cluster"], "does not run in a pod"),
        (["--policy", "best-fit", "--kubeconfig", "/nowhere/config"], "no cluster"),
        (["--policy", "best-fit", "--api-server", "http://x", "--in-cluster"], "exclude each other"),
        (["--policy", "best-fit", "--latency-budget-ms", "0"], "must be 0.1 to 5000"),
        (["--policy", "best-fit", "--max-request-mib", "0"], "above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "token").write_text("a-token-of-some-length")
    given = [str(tmp_path / "token") if a == "TOKEN" else a for a in arguments]
    assert main(["serve", "kube", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_it_serves_a_cluster_until_it_is_told_to_stop(server: ApiServer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        server.create("nodes", node(name))
    record = tmp_path / "record.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatchgym", "serve", "kube", "--policy", "first-fit", "--port", "0", "--api-server",
         server.url, "--dry-run", "--record", str(record)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while (found := re.search(r"at (http://\S+),", process.stderr.readline())) is None:
            assert process.poll() is None
        url = found[1]
        assert eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        server.create("pods", pod("p"), "shop")
        assert eventually(lambda: httpx.get(f"{url}/agreement").json()["decided"] == 1)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "1 pods decided" in rest
    line = json.loads(record.read_text())
    assert (line["pod"], line["would"], line["bound"], line["dry_run"]) == ("shop/p", "a", "", True)
