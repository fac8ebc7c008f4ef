"""The extender's server on a socket: packets, access, limits, and what it tells about itself."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.convert import node_facts
from dispatchgym.serving.kube.extender import ExtenderConfig
from dispatchgym.serving.kube.one_packet import OnePacketHttp
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.server import build_app
from dispatchgym.serving.security import Access
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.live import eventually, extender, serving
from tests.serving.kube.objects import Says, node, pod
from tests.serving.kube.test_extender import BY_NAME, POD

TOKEN = "a-token-of-some-length"
SECOND = Says(lambda n: float(n))


# --- packets ---


class RecordingTransport(asyncio.Transport):
    """What a protocol writes, write by write."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__({"socket": own, "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []
        self.is_over = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def test_head_and_body_leave_in_one_piece() -> None:
    async def ask() -> list[bytes]:
        made = extender(SECOND)
        for name in ("a", "b"):
            made.state.put_node(node_facts(node(name)))
        config = uvicorn.Config(build_app(made, Access()), http=OnePacketHttp, log_config=None, lifespan="off")
        config.load()
        protocol = OnePacketHttp(config, uvicorn.server.ServerState(), {})
        with socket.socket() as own:
            transport = RecordingTransport(own)
            protocol.connection_made(transport)
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            body = BY_NAME.encode()
            head = f"POST /prioritize HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            for _ in range(2):  # the second on the connection that was kept
                protocol.data_received(head + body)
                answered = len(transport.writes) + 1
                while len(transport.writes) < answered:
                    await asyncio.sleep(0)
                for _ in range(20):  # whatever else would be written
                    await asyncio.sleep(0)
            protocol.connection_lost(None)
        made.advisor.close()
        return transport.writes

    writes = asyncio.run(ask())
    assert len(writes) == 2
    for packet in writes:
        head, _, body = packet.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body) == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 10}]


def test_an_accepted_connection_does_not_gather_small_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = OnePacketHttp.connection_made

    def look(self: OnePacketHttp, transport: Any) -> None:
        before(self, transport)
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(OnePacketHttp, "connection_made", look)
    with serving(extender(SECOND)) as live, httpx.Client(base_url=live.url) as client:
        for _ in range(3):
            assert client.get("/healthz").text == "ok"
    assert len(seen) == 1  # one connection, kept
    assert seen[0] != 0


# --- what it tells ---


def test_it_follows_a_cluster_and_explains(server: ApiServer) -> None:
    server.create("nodes", node("a", "2"))
    server.create("nodes", node("b", "2"))
    server.create("nodes", node("c", "1"))
    for name, cpu, on in (("x", "1500m", "a"), ("y", "200m", "b"), ("z", "1", "b")):
        made = pod(name, cpu, "100Mi", on, owner="rs")
        server.create("pods", made, "shop")
    journal = io.StringIO()
    one = extender(Says(lambda n: -float(n), "prefers the first"), journal=journal)
    with serving(one, source=KubeApi.connect(url=server.url)) as live, httpx.Client(base_url=live.url) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        wanted = pod("web", "1", "100Mi", priority=5)
        server.create("pods", wanted, "shop")
        assert eventually(lambda: one.state.find_pod("shop", "web") is not None)
        said = client.get("/explain/shop/web").json()
        assert (said["chosen"], said["runner_up"], said["scored_by"]) == ("c", None, "policy")
        assert said["infeasible"]["a"]["filter"] == "NodeResourcesFit"
        assert "asks 1000, free 500" in said["infeasible"]["a"]["reason"]
        # Without y, b has 1000 free, and y fits on a; without z, 1800, and z fits on c; x fits nowhere else.
        assert said["would_fit_if"] == [
            {"node": "b", "moved": "shop/y", "to": "a"},
            {"node": "b", "moved": "shop/z", "to": "c"},
            {"node": "a", "moved": "shop/x", "to": None},
        ]
        assert said["feasible"][0]["priority"] == 10
        assert {"kube-scheduler", "best-fit"} <= set(said["feasible"][0]["rules"])
        assert said["best_of"]["best-fit"] == "c"
        assert client.get("/explain/shop/nobody").status_code == 404

        uid = one.state.find_pod("shop", "web").uid  # type: ignore[union-attr]
        asked = {"Pod": {**wanted, "metadata": {**wanted["metadata"], "uid": uid}}, "NodeNames": ["a", "b", "c"]}
        assert client.post("/prioritize", json=asked).json()[0] == {"Host": "a", "Score": 10}
        target = {"target": {"kind": "Node", "name": "c"}, "metadata": {"name": "web", "namespace": "shop"}}
        assert client.get("/agreement").json()["pending"] == 1
        httpx.post(f"{server.url}/api/v1/namespaces/shop/pods/web/binding", json=target).raise_for_status()
        assert eventually(lambda: client.get("/agreement").json()["bound"] == 1)
        assert client.get("/agreement").json()["rate"] == 0.0
        text = client.get("/metrics").text
        assert 'dispatchgym_extender_outcomes_total{agrees="false"} 1.0' in text
        assert "dispatchgym_extender_nodes 3.0" in text
        assert client.get("/explain/shop/web").json()["last_decision"]["bound"] == "c"
    assert json.loads(journal.getvalue())["would"] == "a"


def test_it_is_not_ready_before_the_policy_can_be_asked() -> None:
    def broken(n: int) -> float:
        raise RuntimeError("no weights")

    with serving(extender(Says(broken))) as live, httpx.Client(base_url=live.url) as client:
        assert eventually(lambda: "loaded" not in client.get("/readyz").text)
        answer = client.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "policy says cannot be asked; see the log")
        assert client.get("/healthz").status_code == 200


def test_a_broken_binding_is_answered_in_the_protocols_own_way(server: ApiServer) -> None:
    api = KubeApi.connect(url=server.url)
    with serving(extender(SECOND, binder=api)) as live:
        server.create("nodes", node("a"))
        server.create("pods", pod("p"), "shop")
        uid = server.get("pods", "p", "shop")["metadata"]["uid"]  # type: ignore[index]
        asked = {"PodName": "p", "PodNamespace": "shop", "PodUID": uid, "Node": "a"}
        assert httpx.post(f"{live.url}/bind", json=asked).json() == {"Error": ""}
        assert server.hosts() == {"p": "a"}
        again = httpx.post(f"{live.url}/bind", json=asked)
        assert again.status_code == 200
        assert "409" in again.json()["Error"]


def test_a_dry_run_watches_a_cluster_whose_scheduler_knows_nothing_of_it(server: ApiServer) -> None:
    for name in ("a", "b"):
        server.create("nodes", node(name, "2"))
    server.create("pods", pod("early", on="a"), "shop")  # bound before it looked: no decision to compare
    journal = io.StringIO()
    made = extender(SECOND, ExtenderConfig(dry_run=True), journal=journal)
    with serving(made, source=KubeApi.connect(url=server.url)) as live, httpx.Client(base_url=live.url) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        for name, where in (("p", "b"), ("q", "a"), ("picky", "a")):
            rules = {"nodeSelector": {"kubernetes.io/hostname": "a"}} if name == "picky" else {}
            server.create("pods", pod(name, "100m", **rules), "shop")
            assert eventually(lambda name=name: made.state.find_pod("shop", name) is not None)  # type: ignore[misc]
            target = {"target": {"kind": "Node", "name": where}, "metadata": {"name": name, "namespace": "shop"}}
            httpx.post(f"{server.url}/api/v1/namespaces/shop/pods/{name}/binding", json=target).raise_for_status()
        server.create("pods", pod("huge", "99"), "shop")
        assert eventually(lambda: made.state.find_pod("shop", "huge") is not None)
        assert eventually(lambda: client.get("/agreement").json()["bound"] == 2)
        said = client.get("/agreement").json()
        assert (said["decided"], said["agreed"], said["rate"]) == (2, 1, 0.5)  # picky and huge had no choice
    lines = [json.loads(line) for line in journal.getvalue().splitlines()]
    assert [(x["pod"], x["would"], x["bound"], x["agrees"]) for x in lines] == [
        ("shop/p", "b", "b", True), ("shop/q", "b", "a", False),
    ]  # fmt: skip
    assert not server.sent("POST", "binding$")[3:]  # nothing but what this test has bound


# --- access and limits ---


def token_file(folder: Path, token: str = TOKEN) -> Path:
    path = folder / "token"
    path.write_text(token + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer", 401),
    ],
)
def test_a_token_is_demanded_of_everything_but_probes(tmp_path: Path, header: str | None, code: int) -> None:
    headers = {} if header is None else {"authorization": header}
    with serving(extender(SECOND), Access(token_file(tmp_path))) as live, httpx.Client(base_url=live.url) as client:
        assert client.get("/metrics", headers=headers).status_code == code
        assert client.post("/prioritize", content=BY_NAME, headers=headers).status_code == code
        assert client.get("/healthz").status_code == 200


def test_a_rotated_token_counts_at_once_and_a_lost_one_refuses_everybody(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    with serving(extender(SECOND), Access(path)) as live, httpx.Client(base_url=live.url) as client:
        old, new = ({"authorization": f"Bearer {t}"} for t in (TOKEN, TOKEN + "-2"))
        path.write_text(TOKEN + "-2")
        assert client.get("/agreement", headers=old).status_code == 401
        assert client.get("/agreement", headers=new).status_code == 200
        path.unlink()
        assert client.get("/agreement", headers=new).status_code == 401
        assert client.get("/agreement", headers={"authorization": "Bearer"}).status_code == 401


def test_a_token_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16 characters"):
        Access(token_file(tmp_path, "short"))


def test_no_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secret = {"Pod": {"metadata": {"name": "p"}, "spec": {"containers": [{"env": "hunter2", "resources": 5}]}}}
    with serving(extender(SECOND), Access(token_file(tmp_path))) as live:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{live.url}/filter", json=secret, headers=headers)
        assert answer.status_code == 400
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("dispatchgym", "uvicorn")))
    assert "refused" in ours
    assert "hunter2" not in ours + answer.text
    assert TOKEN not in ours


def raw(port: int, *pieces: bytes) -> bytes:
    """Send pieces, read to the end."""
    with socket.create_connection(("127.0.0.1", port), 30) as own:
        for piece in pieces:
            own.sendall(piece)
        found = b""
        while chunk := own.recv(65536):
            found += chunk
        return found


def test_a_request_that_is_too_large_is_refused_unread() -> None:
    with serving(extender(SECOND), Access(max_bytes=1000)) as live:
        large = httpx.post(f"{live.url}/filter", content=b"x" * 1001)
        assert (large.status_code, large.json()) == (413, {"error": "a request may have 1000 bytes"})
        head = b"POST /filter HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n"
        assert raw(live.port, head).startswith(b"HTTP/1.1 4")
        chunks = b"POST /filter HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001
        assert raw(live.port, chunks).startswith(b"HTTP/1.1 413")
        assert httpx.get(f"{live.url}/healthz").status_code == 200


def test_a_client_that_never_finishes_is_told_so() -> None:
    with serving(extender(SECOND), Access(body_s=0.05)) as live:
        assert raw(live.port, b"POST /filter HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").startswith(
            b"HTTP/1.1 408"
        )


@pytest.mark.parametrize("verb", ["filter", "prioritize", "preempt", "bind", "explain"])
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"Pod":' * 50_000, b'{"Pod":{"metadata":[]}}',
     b'{"Pod":{"metadata":{"name":"\\ud800"}}}', b'{"Pod":{"spec":{"priority":' + b"9" * 5000 + b"}}}"],
    ids=range(10),
)  # fmt: skip
def test_malformed_bodies_get_a_4xx(verb: str, body: bytes) -> None:
    app = build_app(extender(SECOND), Access())

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            return (await client.post(f"/{verb}", content=body)).status_code

    assert asyncio.run(ask()) == 400


# --- certificates ---

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client certificates with their keys, and a client of a stranger's authority."""
    if OPENSSL is None:
        pytest.skip("openssl is not on this machine: nothing makes certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([str(OPENSSL), *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "stranger"):
        files = ("-keyout", f"{authority}.key", "-out", f"{authority}.crt")
        run("req", "-x509", *key, *files, "-subj", f"/CN={authority}", "-days", "2")
    for name, authority in (("server", "ca"), ("client", "ca"), ("other", "stranger")):
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-out", f"{name}.crt", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder


def test_a_client_certificate_is_demanded_of_everything_but_probes(certificates: Path) -> None:
    options = {
        "ssl_certfile": certificates / "server.crt",
        "ssl_keyfile": certificates / "server.key",
        "ssl_ca_certs": str(certificates / "ca.crt"),
        "ssl_cert_reqs": ssl.CERT_OPTIONAL,
    }

    def client(name: str = "") -> httpx.Client:
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        if name:
            context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
        return httpx.Client(verify=context)

    with serving(extender(SECOND), Access(client_certificates=True), **options) as live:
        url = f"https://127.0.0.1:{live.port}"
        with client() as nobody:
            assert nobody.get(f"{url}/healthz").status_code == 200
            assert nobody.post(f"{url}/prioritize", content=BY_NAME).status_code == 401
        with client("client") as known:
            assert known.post(f"{url}/prioritize", content=BY_NAME).status_code == 200
        with client("other") as stranger, pytest.raises(httpx.TransportError):
            stranger.get(f"{url}/healthz")


def test_dry_run_stays_out_of_the_way_on_the_wire() -> None:
    made = extender(SECOND, ExtenderConfig(dry_run=True))
    made.state.put_node(node_facts(node("a")))
    with serving(made) as live, httpx.Client(base_url=live.url) as client:
        asked = {"Pod": json.loads(POD), "NodeNames": ["a", "b"]}
        assert client.post("/filter", json=asked).json()["NodeNames"] == ["a", "b"]
        assert client.post("/prioritize", json=asked).json() == [{"Host": "a", "Score": 0}, {"Host": "b", "Score": 0}]
        assert client.get("/agreement").json()["dry_run"] is True
