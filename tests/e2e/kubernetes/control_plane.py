"""A real control plane on this machine: etcd, kube-apiserver and kube-scheduler as processes, without kubelets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

Json = dict[str, Any]
TOKEN = "dispatchgym-end-to-end"
START_S = 90.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A process and its log file; ended by its own id alone."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})}, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def memory_mib(self) -> float:
        """Resident now."""
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
            return float(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
        return 0.0

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.is_running:
            self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_for(self, url: str, timeout_s: float = START_S) -> float:
        """Seconds until `url` answers 200.

        Raises:
            RuntimeError: the process ended, or never answered; with the end of its log.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < timeout_s:
            with suppress(httpx.HTTPError):
                # verify=False: a server on loopback that this run started, with a certificate it made for itself
                if httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, verify=False).status_code == 200:
                    return time.monotonic() - begun
            if not self.is_running:
                break
            time.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{self.name} did not come up; the end of {self.log}:\n{tail}")


class ControlPlane:
    """etcd and kube-apiserver; schedulers are added by `scheduler`. Everything ends with the `with` block.

    Args:
        binaries: folder with etcd, kube-apiserver, kube-scheduler.
        folder: for data and logs, empty.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self.programs: list[Program] = []
        self.url = f"https://127.0.0.1:{free_port()}"
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self._api: Program | None = None
        self.api_start_s = 0.0

    def __enter__(self) -> ControlPlane:
        key, tokens = self.folder / "service-account.key", self.folder / "tokens.csv"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens.write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        self.etcd = self.run(
            "etcd",
            [
                self.binaries / "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync",
                "--listen-client-urls", self._etcd_url, "--advertise-client-urls", self._etcd_url,
                "--listen-peer-urls", f"http://127.0.0.1:{free_port()}", "--log-level", "warn",
            ],
        )  # fmt: skip
        try:
            self.etcd.wait_for(f"{self._etcd_url}/health")
            self.start_api()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in reversed(self.programs):
            program.end(signal.SIGKILL)  # nothing of it is kept, and a clean end takes the API server half a minute

    def run(self, name: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> Program:
        """Start a program that ends with the control plane."""
        program = Program(name, command, self.folder / f"{name}.log", env)
        self.programs.append(program)
        return program

    def start_api(self) -> None:
        key, port = self.folder / "service-account.key", self.url.rsplit(":", 1)[1]
        self._api = self.run(
            "kube-apiserver",
            [
                self.binaries / "kube-apiserver", "--etcd-servers", self._etcd_url,
                "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", port,
                "--insecure-port", "0", "--cert-dir", self.folder / "certificates",
                "--token-auth-file", self.folder / "tokens.csv", "--authorization-mode", "AlwaysAllow",
                "--service-account-key-file", key, "--service-account-signing-key-file", key,
                "--service-account-issuer", "https://kubernetes.default.svc", "--endpoint-reconciler-type", "none",
                "--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition,NodeRestriction",
                "--service-cluster-ip-range", "10.0.0.0/24", "--allow-privileged",
            ],
        )  # fmt: skip
        self.api_start_s = self._api.wait_for(f"{self.url}/readyz")

    def kill_api(self) -> None:
        """As a crash: without a goodbye."""
        assert self._api
        self._api.end(signal.SIGKILL)
        self.programs.remove(self._api)

    @property
    def api_is_running(self) -> bool:
        return self._api is not None and self._api.is_running

    def kubeconfig(self) -> Path:
        """A file that kube-scheduler, kubectl and the Python client read."""
        path = self.folder / "kubeconfig.json"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "e2e",
                    "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
                    "clusters": [{"name": "e2e", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
                    "users": [{"name": "e2e", "user": {"token": TOKEN}}],
                }
            )
        )
        return path

    def scheduler(self, extenders: Sequence[Json] = ()) -> Program:
        """kube-scheduler with its default plug-ins, and these extenders."""
        settings = {
            "apiVersion": "kubescheduler.config.k8s.io/v1beta1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig()), "qps": 5000, "burst": 5000},
            "leaderElection": {"leaderElect": False},
            "healthzBindAddress": "",
            "metricsBindAddress": "",
            "extenders": list(extenders),
        }
        path = self.folder / "kube-scheduler.json"
        path.write_text(json.dumps(settings))
        port = free_port()
        program = self.run(
            "kube-scheduler",
            [
                self.binaries / "kube-scheduler", "--config", path, "--bind-address", "127.0.0.1",
                "--secure-port", str(port), "--port", "0", "--cert-dir", self.folder / "certificates",
            ],
        )  # fmt: skip
        program.wait_for(f"https://127.0.0.1:{port}/healthz")
        return program
