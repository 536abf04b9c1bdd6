"""List and watch against a real server that is as bad as servers get; kubeconfigs of every kind."""

from __future__ import annotations

import base64
import contextlib
import pwd
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tracer.api_server import PODS, SERVICES, ApiServer, pod, service
from tracer.errors import FormatError, MissingError
from tracer.kubeapi import Access, Mirror, Resource, config, connection, mirror


class Table:
    """A store that remembers what it was told."""

    def __init__(self) -> None:
        self.items: dict[str, str] = {}
        self.replaced = 0

    def replace(self, items: dict[str, str]) -> None:
        self.items = dict(items)
        self.replaced += 1

    def put(self, key: str, item: str) -> None:
        self.items[key] = item

    def remove(self, key: str) -> None:
        self.items.pop(key, None)


def ip_of(document: dict[str, Any]) -> str:
    return str(document["status"].get("podIP"))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same retries, sooner."""
    monkeypatch.setattr(mirror, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(mirror, "LAST_RETRY_SECONDS", 0.1)


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    """Ends the servers of a test, after its mirrors.

    A client that is reset between connect() and its handshake loses its socket to the garbage collector
    (ssl.SSLSocket._create, Python 3.11), and that fails whichever test runs by then.
    """
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def server(servers: contextlib.ExitStack) -> ApiServer:
    return servers.enter_context(ApiServer())


@pytest.fixture
def watch(servers: contextlib.ExitStack) -> Iterator[Callable[..., tuple[Table, Mirror]]]:
    """Mirrors pods into a table, and ends that with the test."""
    running: list[Mirror] = []

    def start(access: Access | Callable[[], Access]) -> tuple[Table, Mirror]:
        table = Table()
        find = access if callable(access) else lambda: access
        running.append(Mirror(find, [Resource(PODS, ip_of, table)]))
        running[-1].start()
        return table, running[-1]

    yield start
    for one in running:
        one.close()


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_a_list_of_many_pages_is_complete(server: ApiServer, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PAGE", 10)
    server.put(PODS, *(pod(f"p{n}", f"10.0.0.{n}") for n in range(37)))
    table, pods = watch(server.access)
    assert pods.settled(5)
    assert table.items == {f"default/p{n}": f"10.0.0.{n}" for n in range(37)}
    assert [page.get("continue") for page in server.lists(PODS)] == [None, "10", "20", "30"]
    assert (pods.loaded(), pods.trouble()) == (True, [])


def test_an_empty_list_is_loaded(server: ApiServer, watch: Any) -> None:
    table, pods = watch(server.access)
    assert pods.settled(5)
    assert (table.items, table.replaced, pods.loaded(), pods.trouble()) == ({}, 1, True, [])


def test_a_page_that_expires_begins_the_list_again(
    server: ApiServer, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAGE", 10)
    server.put(PODS, *(pod(f"p{n}", f"10.0.0.{n}") for n in range(23)))
    server.expired_pages = 1
    table, pods = watch(server.access)
    assert until(lambda: len(table.items) == 23)
    assert pods.trouble() == []


def test_events_are_applied_as_they_come(server: ApiServer, watch: Any) -> None:
    first, second = pod("a", "10.0.0.1"), pod("b", "10.0.0.2")
    server.put(PODS, first)
    table, _ = watch(server.access)
    assert server.watching(PODS)
    server.put(PODS, second)
    assert until(lambda: table.items == {"default/a": "10.0.0.1", "default/b": "10.0.0.2"})
    server.put(PODS, pod("a", "10.0.0.9"))
    assert until(lambda: table.items["default/a"] == "10.0.0.9")
    server.remove(PODS, second)
    assert until(lambda: table.items == {"default/a": "10.0.0.9"})
    assert table.replaced == 1


def test_a_watch_begins_where_the_list_ended_and_goes_on_where_it_was_cut(server: ApiServer, watch: Any) -> None:
    server.put(PODS, pod("a", "10.0.0.1"))
    listed = server.version
    table, _ = watch(server.access)
    assert server.watching(PODS)
    server.send(PODS, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "777"}}})
    server.send(PODS, {"type": "ADDED", "object": pod("b", "10.0.0.2") | {"x": "y"}})
    assert until(lambda: len(table.items) == 2)
    server.cut()
    assert until(lambda: len(server.watches(PODS)) == 2)
    versions = [parameters["resourceVersion"] for parameters in server.watches(PODS)]
    assert versions == [str(listed), "777"]
    assert all(parameters["allowWatchBookmarks"] == "true" for parameters in server.watches(PODS))
    assert len(server.lists(PODS)) == 1


def test_gone_lists_again_and_forgets_what_is_no_more(server: ApiServer, watch: Any) -> None:
    stays, goes = pod("a", "10.0.0.1"), pod("b", "10.0.0.2")
    server.put(PODS, stays, goes)
    table, pods = watch(server.access)
    assert server.watching(PODS)
    server.silently_remove(PODS, goes)
    server.send(PODS, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
    assert until(lambda: table.items == {"default/a": "10.0.0.1"})
    assert pods.trouble() == []


@pytest.mark.parametrize(
    "rubbish",
    [
        b"not JSON",
        b"[]",
        b"{}",
        b'{"items": 7, "metadata": {}}',
        b'{"metadata": null, "items": []}',
        b"\xff\xfe\x00" * 1000,
        b"[" * 100_000,
    ],
    ids=["words", "a list", "nothing", "no items", "no metadata", "bytes", "depth"],
)
def test_rubbish_is_reported_and_asked_again(server: ApiServer, watch: Any, rubbish: bytes) -> None:
    server.rubbish_for[PODS] = rubbish
    table, pods = watch(server.access)
    assert pods.settled(5)
    assert not pods.loaded()
    assert len(pods.trouble()) == 1
    server.put(PODS, pod("a", "10.0.0.1"))
    del server.rubbish_for[PODS]
    assert until(lambda: table.items == {"default/a": "10.0.0.1"})
    assert until(lambda: pods.trouble() == [])


@pytest.mark.parametrize("rubbish", [b"not JSON\n", b"{}\n", b'{"type": "ADDED", "object": []}\n', b'"ADDED"\n'])
def test_rubbish_in_a_watch_lists_again(server: ApiServer, watch: Any, rubbish: bytes) -> None:
    server.put(PODS, pod("a", "10.0.0.1"))
    server.rubbish_in_watch_for[PODS] = rubbish
    table, pods = watch(server.access)
    assert until(lambda: table.replaced >= 3)
    assert pods.loaded()
    del server.rubbish_in_watch_for[PODS]
    assert server.watching(PODS)
    assert until(lambda: pods.trouble() == [])


def test_objects_that_make_no_sense_are_left_out_and_counted(server: ApiServer, watch: Any) -> None:
    server.rubbish_for[PODS] = b"""{"metadata": {"resourceVersion": "1"}, "items": [
        7, {}, {"metadata": {"name": ""}}, {"metadata": {"name": "x", "namespace": 3}}, {"metadata": {"name": "empty"}},
        {"metadata": {"name": "good", "namespace": "n"}, "status": {"podIP": "10.0.0.1"}}]}"""
    table, pods = watch(server.access)
    assert pods.settled(5)
    assert table.items == {"n/good": "10.0.0.1"}
    assert pods.loaded()
    # The watch that follows gets the same bytes, which are rubbish there; and then the list comes once more.
    assert until(lambda: pods.trouble() == ["5 of the pods make no sense and are left out"])


def test_an_endless_answer_is_given_up(server: ApiServer, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_DOCUMENT", 10_000)
    server.rubbish_for[PODS] = b" " * 1_000_000
    _, pods = watch(server.access)
    assert pods.settled(5)
    assert "without end" in pods.trouble()[0]


def test_an_endless_event_is_given_up(server: ApiServer, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_LINE", 10_000)
    server.rubbish_in_watch_for[PODS] = b" " * 1_000_000
    _, pods = watch(server.access)
    assert until(lambda: "without end" in "".join(pods.trouble()))


def test_a_refusal_is_told_in_the_words_of_the_api(server: ApiServer, watch: Any) -> None:
    server.status_for[PODS] = 403
    _, pods = watch(server.access)
    assert pods.settled(5)
    assert pods.trouble() == [f"{PODS}: 403 no {PODS} for you"]
    del server.status_for[PODS]
    assert until(pods.loaded)


def test_one_resource_may_be_refused_and_another_be_had(server: ApiServer) -> None:
    server.status_for[SERVICES] = 403
    server.put(PODS, pod("a", "10.0.0.1"))
    pods, services = Table(), Table()
    both = Mirror(lambda: server.access, [Resource(PODS, ip_of, pods), Resource(SERVICES, str, services)])
    both.start()
    try:
        assert both.settled(5)
        assert (pods.items, services.items) == ({"default/a": "10.0.0.1"}, {})
        assert not both.loaded()
        assert len(both.trouble()) == 1
    finally:
        both.close()


def test_a_port_that_refuses(watch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    _, pods = watch(Access("test", f"http://127.0.0.1:{port}"))
    assert pods.settled(5)
    assert "Connection refused" in pods.trouble()[0]


def test_a_server_that_hangs_holds_up_nobody(server: ApiServer, watch: Any) -> None:
    server.hang_for.add(PODS)
    began = time.monotonic()
    _, pods = watch(server.access)
    assert time.monotonic() - began < 0.2
    assert not pods.settled(0.3)
    began = time.monotonic()
    pods.close()
    assert time.monotonic() - began < 1.0


def test_a_server_that_hangs_is_given_up(server: ApiServer, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.2)
    server.hang_for.add(PODS)
    _, pods = watch(server.access)
    assert pods.settled(5)
    assert "timed out" in pods.trouble()[0]


def test_a_server_that_disappears_and_comes_back(watch: Any) -> None:
    with ApiServer() as first:
        first.put(PODS, pod("a", "10.0.0.1"))
        table, pods = watch(first.access)
        assert first.watching(PODS)
    assert until(lambda: "Connection refused" in "".join(pods.trouble()))
    assert table.items == {"default/a": "10.0.0.1"}  # the best that is known
    with ApiServer(port=first.port) as second:
        second.put(PODS, pod("b", "10.0.0.2"))
        assert until(lambda: table.items == {"default/b": "10.0.0.2"})
        assert until(lambda: pods.trouble() == [])


def test_a_cluster_made_anew_elsewhere_is_found(watch: Any) -> None:
    with ApiServer() as first, ApiServer() as second:
        first.put(PODS, pod("a", "10.0.0.1"))
        second.put(PODS, pod("b", "10.0.0.2"))
        now = [first.access]
        table, _ = watch(lambda: now[0])
        assert first.watching(PODS)
        now[0] = second.access
        first.close()
        assert until(lambda: table.items == {"default/b": "10.0.0.2"})


def test_a_kubeconfig_that_comes_later_is_found(server: ApiServer, watch: Any, tmp_path: Path) -> None:
    server.put(PODS, pod("a", "10.0.0.1"))
    path = tmp_path / "kubeconfig"
    table, pods = watch(lambda: config.find(path))
    assert pods.settled(5)
    assert "there is no kubeconfig" in pods.trouble()[0]
    path.write_text(kubeconfig({"server": server.url}))
    assert until(lambda: table.items == {"default/a": "10.0.0.1"})


def test_closing_ends_the_threads_of_a_quiet_watch(server: ApiServer, watch: Any) -> None:
    before = set(threading.enumerate())
    _, pods = watch(server.access)
    assert server.watching(PODS)
    began = time.monotonic()
    pods.close()
    pods.close()
    assert time.monotonic() - began < 0.3
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("watch")]


def test_importing_costs_no_library() -> None:
    code = (
        "import sys, tracer.kubeapi; print([m for m in ('urllib3', 'yaml', 'ssl', 'http.client') if m in sys.modules])"
    )
    # -S: a site package of the machine may import what it likes
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- credentials ---


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificates (.crt) and keys (.key) of an authority, a server and a client."""
    directory = tmp_path_factory.mktemp("certificates")
    openssl = [
        "openssl",
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-batch",
        "-x509",
    ]
    ca = ["-CA", "ca.crt", "-CAkey", "ca.key"]
    alternatives = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:api.example"]
    for name, more in (
        ("ca", ["-addext", "keyUsage=critical,keyCertSign", "-subj", "/CN=kubernetes"]),
        ("server", [*ca, *alternatives, "-subj", "/CN=kube-apiserver", "-addext", "basicConstraints=CA:FALSE"]),
        ("client", [*ca, "-subj", "/O=system:masters/CN=admin", "-addext", "basicConstraints=CA:FALSE"]),
    ):
        command = [*openssl, *more, "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture
def secure(certificates: Path, servers: contextlib.ExitStack) -> Callable[..., ApiServer]:
    """Starts a server that speaks TLS."""

    def start(ask_client: bool = False) -> ApiServer:
        return servers.enter_context(ApiServer(tls_of(certificates, ask_client)))

    return start


def tls_of(certificates: Path, ask_client: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    if ask_client:
        context.load_verify_locations(certificates / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def kubeconfig(cluster: dict[str, Any], user: dict[str, Any] | None = None, name: str = "it") -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user or {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("inline", [True, False], ids=["data", "files"])
def test_mutual_tls(secure: Any, certificates: Path, watch: Any, tmp_path: Path, inline: bool) -> None:
    path = (tmp_path if inline else certificates) / "kubeconfig"
    server = secure(ask_client=True)
    if inline:
        cluster = {"certificate-authority-data": base64_of(certificates / "ca.crt")}
        user = {
            "client-certificate-data": base64_of(certificates / "client.crt"),
            "client-key-data": base64_of(certificates / "client.key"),
        }
    else:  # relative to the kubeconfig
        cluster = {"certificate-authority": "ca.crt"}
        user = {"client-certificate": "client.crt", "client-key": "client.key"}
    path.write_text(kubeconfig({"server": server.url, **cluster}, user))
    _, pods = watch(lambda: config.find(path))
    assert pods.settled(5)
    assert (pods.trouble(), pods.loaded()) == ([], True)


def test_a_server_that_nobody_vouches_for_is_not_trusted(secure: Any, watch: Any) -> None:
    server = secure()
    _, pods = watch(server.access)
    assert pods.settled(5)
    assert "certificate verify failed" in pods.trouble()[0]
    assert server.requests == []


def test_insecure_is_what_the_kubeconfig_asked_for(secure: Any, watch: Any) -> None:
    server = secure()
    _, pods = watch(Access("test", server.url, insecure=True))
    assert pods.settled(5)
    assert pods.loaded()


def test_the_name_to_verify_may_be_another_than_the_servers(secure: Any, certificates: Path, watch: Any) -> None:
    authority = (certificates / "ca.crt").read_bytes()
    server = secure()
    _, good = watch(Access("test", server.url, authority, tls_server_name="api.example"))
    _, bad = watch(Access("test", server.url, authority, tls_server_name="other.example"))
    assert good.settled(5)
    assert bad.settled(5)
    assert (good.loaded(), bad.loaded()) == (True, False)


def test_certificates_that_are_none_are_reported(watch: Any) -> None:
    _, pods = watch(Access("some file", "https://127.0.0.1:1", b"not a certificate"))
    assert pods.settled(5)
    assert "the certificates in some file can't be used" in pods.trouble()[0]


def test_a_token_file_is_read_again(server: ApiServer, watch: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "TOKEN_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("first\n")
    watch(Access("test", server.url, token_file=token))
    assert server.watching(PODS)
    token.write_text("second\n")
    server.cut()
    assert until(lambda: len(server.watches(PODS)) == 2)
    sent = [headers["authorization"] for _, _, headers in server.requests]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


def test_a_password_is_sent(server: ApiServer, watch: Any) -> None:
    watch(Access("test", server.url, username="me", password="secret"))
    assert server.watching(PODS)
    assert server.requests[0][2]["authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


def test_secrets_stay_out_of_tracebacks() -> None:
    access = Access("file", "https://x", client_key=b"KEY", token="TOKEN", password="WORD")
    assert not any(secret in repr(access) for secret in ("KEY", "TOKEN", "WORD"))


# --- kubeconfig files ---


def test_what_runs_a_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig({"server": "https://x"}, {"exec": {"command": "touch"}}))
    with pytest.raises(MissingError, match="'exec'") as refused:
        config.find(path)
    assert refused.value.hint is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not YAML"),
        ("just words", "no mapping"),
        ("{}", "no current context"),
        ("current-context: it", "no 'it' in contexts"),
        (kubeconfig({"server": "ftp://x"}), "no server"),
        (kubeconfig({}), "no server"),
        (kubeconfig({"server": "https://x", "certificate-authority-data": "%%%"}), "not base64"),
        (kubeconfig({"server": "https://x", "certificate-authority": "/nowhere"}), "can't be read"),
        ("clusters: [1]\ncurrent-context: it", "something else than a cluster"),
        ("clusters: [{name: it, cluster: 1}]\ncurrent-context: it", "something else than a cluster"),
        ("\0", "not YAML"),
    ],
)
def test_files_that_are_no_kubeconfig(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(FormatError, match=why):
        config.find(path)


def test_of_several_files_the_first_that_says_something_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(yaml.safe_dump({"clusters": [{"name": "it", "cluster": {"server": "https://first"}}]}))
    second.write_text(kubeconfig({"server": "https://second"}, {"token": "T"}))
    environ = {"KUBECONFIG": f"{tmp_path}/none:{first}:{second}"}
    access = config.find(environ=environ)
    assert (access.server, access.token) == ("https://first", "T")
    with pytest.raises(MissingError, match="there is no kubeconfig"):
        config.find(environ={"KUBECONFIG": f"{tmp_path}/none"})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The usual places, all in a directory of the test's own, and empty."""
    paths = {name: tmp_path / name for name in ("lab", "admin", "home/.kube/config", "account/token")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(config, "LAB_KUBECONFIG", paths["lab"])
    monkeypatch.setattr(config, "ADMIN_KUBECONFIG", paths["admin"])
    return paths


def test_the_usual_places_in_their_order(places: dict[str, Path], tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path / "home")}
    with pytest.raises(MissingError, match="no kubeconfig was found"):
        config.find(environ=environ)
    places["admin"].write_text(kubeconfig({"server": "https://admin"}))
    assert config.find(environ=environ).server == "https://admin"
    places["home/.kube/config"].write_text(kubeconfig({"server": "https://home"}))
    assert config.find(environ=environ).server == "https://home"
    with socket.create_server(("127.0.0.1", 0)) as lab:
        places["lab"].write_text(kubeconfig({"server": f"https://127.0.0.1:{lab.getsockname()[1]}"}))
        assert config.find(environ=environ).server.startswith("https://127.0.0.1:")
    assert config.find(environ=environ).server == "https://home"  # the miniature cluster is down
    environ["KUBECONFIG"] = str(places["admin"])
    assert config.find(environ=environ).server == "https://admin"


def test_the_home_of_who_called_sudo(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places["home/.kube/config"].write_text(kubeconfig({"server": "https://theirs"}))
    user = pwd.struct_passwd(("me", "x", 1000, 1000, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {"me": user}.__getitem__)
    environ = {"HOME": str(tmp_path / "root"), "SUDO_USER": "me"}
    assert config.find(environ=environ).server == "https://theirs"
    with pytest.raises(MissingError):
        config.find(environ=environ | {"SUDO_USER": "nobody-like-that"})


def test_a_usual_place_that_is_of_no_use_is_passed_over(places: dict[str, Path], tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path / "home")}
    places["home/.kube/config"].write_text(kubeconfig({"server": "https://home"}, {"exec": {"command": "aws"}}))
    with pytest.raises(MissingError, match="'exec'"):
        config.find(environ=environ)
    places["admin"].write_text(kubeconfig({"server": "https://admin"}))
    assert config.find(environ=environ).server == "https://admin"


def test_the_service_account_of_a_pod(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    assert config.in_cluster(environ, tmp_path) is None
    (tmp_path / "token").write_text("T")
    (tmp_path / "ca.crt").write_text("C")
    access = config.in_cluster(environ, tmp_path)
    assert access is not None
    assert (access.server, access.token_file, access.certificate_authority) == (
        "https://[fd00::1]:443",
        tmp_path / "token",
        b"C",
    )
    assert config.in_cluster({}, tmp_path) is None


def test_services_are_kept_by_namespace_and_name(server: ApiServer) -> None:
    server.put(SERVICES, service("web", "10.96.0.1"), service("web", "10.96.0.2", namespace="other"))
    services = Table()
    one = Mirror(lambda: server.access, [Resource(SERVICES, lambda item: item["spec"]["clusterIP"], services)])
    one.start()
    try:
        assert one.settled(5)
        assert services.items == {"default/web": "10.96.0.1", "other/web": "10.96.0.2"}
    finally:
        one.close()
