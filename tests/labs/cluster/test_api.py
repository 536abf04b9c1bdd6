"""The API of a running cluster, as kubectl and other clients meet it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.labs.lab import Lab

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def config(cluster: Lab) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(Path(cluster.kubeconfig()).read_text())
    return document


class Client:
    """A client of the API, with the administrator's certificate or without."""

    def __init__(self, config: dict[str, Any], directory: Path, *, certificate: bool = True) -> None:
        server = config["clusters"][0]["cluster"]
        self.url = server["server"]
        authority = base64.b64decode(server["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        if certificate:
            user = config["users"][0]["user"]
            path = directory / "client.pem"
            data = b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))
            path.write_bytes(data)
            self.context.load_cert_chain(path)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=10) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def send(self, method: str, path: str, data: bytes, kind: str = "application/json") -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": kind, "Connection": "close"}
        )
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=10) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, context=self.context, timeout=10) as response:
            return str(response.read().decode())

    def stream(self, path: str) -> Iterator[dict[str, Any]]:
        with urllib.request.urlopen(self.url + path, context=self.context, timeout=10) as response:
            for line in response:
                yield json.loads(line)


@pytest.fixture(scope="module")
def client(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(config, tmp_path_factory.mktemp("client"))


AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"


class TestProxy:
    """Requests that the API server makes for others, as behind `kubectl proxy`."""

    BASE = "/api/v1/namespaces/fastapi/services"

    def test_to_one_of_a_services_pods(self, client: Client, cluster: Lab) -> None:
        pods = client.get("/api/v1/namespaces/fastapi/pods")[1]["items"]
        names = {pod["metadata"]["name"] for pod in pods}
        for port in ("8000", "http"):
            code, told = client.get(f"{self.BASE}/http:lets-ship-it:{port}/proxy/a%2Fb/c?d=e")
            assert (code, told["pod"] in names, told["path"]) == (200, True, "/a%2Fb/c?d=e")
        code, told = client.send("POST", f"{self.BASE}/lets-ship-it:8000/proxy/", b"x" * 100_000)
        assert (code, told["path"]) == (200, "/")
        name, node = pods[0]["metadata"]["name"], pods[0]["spec"]["nodeName"]
        told = client.get(f"/api/v1/namespaces/fastapi/pods/{name}:8000/proxy")[1]  # and is sent to …/proxy/
        assert (told["pod"], told["node"], told["path"]) == (name, node, "/")

    @pytest.mark.parametrize(
        ("name", "code", "words"),
        [
            ("lets-ship-it:9", 503, 'no service port 9 found for service "lets-ship-it"'),
            ("lets-ship-it:x", 503, 'no endpoints available for service "lets-ship-it"'),
            ("nobody", 404, 'endpoints "nobody" not found'),
            ("a:b:c:d", 400, 'invalid service request "a:b:c:d"'),
        ],
    )
    def test_where_nobody_is(self, client: Client, name: str, code: int, words: str) -> None:
        found, told = client.get(f"{self.BASE}/{name}/proxy/")
        assert (found, told["message"]) == (code, words)

    def test_a_pod_that_does_not_listen(self, client: Client) -> None:
        code, told = client.get("/api/v1/namespaces/default/pods/client:81/proxy/")
        assert (code, told["reason"]) == (503, "ServiceUnavailable")
        assert told["message"].startswith("error trying to reach service: dial tcp 10.244.")
        assert told["message"].endswith(":81: connect: connection refused")


class TestNewerClients:
    """What kubectl 1.26 to 1.34 and their libraries ask for, as they ask for it."""

    def test_discovery_in_one_answer(self, client: Client) -> None:
        asked = ",".join([AGGREGATED.format("v2"), AGGREGATED.format("v2beta1"), "application/json"])
        code, document = client.get("/apis", Accept=asked)
        assert (code, document["kind"], document["apiVersion"]) == (
            200,
            "APIGroupDiscoveryList",
            "apidiscovery.k8s.io/v2",
        )
        apps = next(item for item in document["items"] if item["metadata"]["name"] == "apps")
        (version,) = apps["versions"]
        assert (version["version"], version["freshness"]) == ("v1", "Current")
        found = next(item for item in version["resources"] if item["resource"] == "deployments")
        assert found["responseKind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
        assert (found["scope"], found["singularResource"], found["shortNames"]) == (
            "Namespaced",
            "deployment",
            ["deploy"],
        )
        scale = next(item for item in found["subresources"] if item["subresource"] == "scale")
        assert scale["responseKind"] == {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        code, document = client.get("/api", Accept=AGGREGATED.format("v2beta1"))
        assert document["apiVersion"] == "apidiscovery.k8s.io/v2beta1"
        (core,) = document["items"]
        assert {"pods", "services", "nodes"} <= {item["resource"] for item in core["versions"][0]["resources"]}

    def test_the_aggregated_form_says_what_the_others_say(self, client: Client) -> None:
        document = client.get("/apis", Accept=AGGREGATED.format("v2"))[1]
        whole = {
            (item["metadata"]["name"], version["version"]): [kind["resource"] for kind in version["resources"]]
            for item in document["items"]
            for version in item["versions"]
        }
        parts = {}
        for group in client.get("/apis")[1]["groups"]:
            for version in group["versions"]:
                listed = client.get(f"/apis/{version['groupVersion']}")[1]["resources"]
                parts[group["name"], version["version"]] = [one["name"] for one in listed if "/" not in one["name"]]
        assert whole == parts

    def test_a_list_as_a_stream_is_refused_so_that_clients_list(self, client: Client) -> None:
        query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        code, answer = client.get(f"/api/v1/pods?{query}")
        assert (code, answer["reason"]) == (422, "Invalid")
        assert answer["message"] == (
            'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for '
            "watch unless the WatchList feature gate is enabled"
        )

    def test_cbor_is_refused_so_that_clients_use_json(self, client: Client) -> None:
        code, answer = client.send("POST", "/api/v1/namespaces/default/configmaps", b"\xd9\xd9\xf7", "application/cbor")
        assert (code, answer["reason"]) == (415, "UnsupportedMediaType")
        code, listed = client.get("/api/v1/namespaces", Accept="application/cbor, application/json")
        assert (code, listed["kind"]) == (200, "NamespaceList")

    def test_nobody_but_an_administrator_asks_as_somebody_else(self, client: Client) -> None:
        other = {"Impersonate-User": "somebody"}
        code, answer = client.get("/api/v1/pods", **other)
        assert (code, answer["message"]) == (
            403,
            'pods is forbidden: User "somebody" cannot list resource "pods" in API group "" at the cluster scope',
        )
        account = {"Impersonate-User": "system:serviceaccount:kube-system:coredns"}
        assert client.get("/api/v1/pods", **account)[0] == 200
        assert client.get("/api/v1/pods", **other, **{"Impersonate-Group": "system:masters"})[0] == 200


class TestAccess:
    def test_the_kubeconfig_is_for_root_only(self, cluster: Lab) -> None:
        found = Path(cluster.kubeconfig()).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)

    @pytest.mark.parametrize("path", ["/api/v1/pods", "/version", "/apis", "/healthz"])
    def test_without_a_certificate_nothing(self, config: dict[str, Any], tmp_path: Path, path: str) -> None:
        stranger = Client(config, tmp_path, certificate=False)
        code, document = stranger.get(path)
        assert (code, document["reason"]) == (401, "Unauthorized")

    def test_a_certificate_of_another_authority_is_refused(self, config: dict[str, Any], tmp_path: Path) -> None:
        from labs.cluster.certificates import Authority

        pair = Authority().client("kubernetes-admin", "system:masters")
        stranger = Client(config, tmp_path, certificate=False)
        (tmp_path / "client.pem").write_bytes(pair.certificate + pair.key)
        stranger.context.load_cert_chain(tmp_path / "client.pem")
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            stranger.get("/api/v1/pods")

    def test_a_made_up_token_is_refused(self, config: dict[str, Any], tmp_path: Path) -> None:
        stranger = Client(config, tmp_path, certificate=False)
        for token in ("x", "a.b.c", "", "é"):
            code, _ = stranger.get("/api/v1/pods", Authorization=f"Bearer {token}")
            assert code == 401

    def test_a_pods_service_account_may_not_read(self, cluster: Lab) -> None:
        script = (
            "cd /var/run/secrets/kubernetes.io/serviceaccount && curl -sS --max-time 5 --cacert ca.crt "
            '-H "Authorization: Bearer $(cat token)" https://kubernetes.default.svc/api/v1/namespaces/shop/pods'
        )
        document = json.loads(cluster.exec("default/client", "sh", "-c", script).stdout)
        assert document["message"] == (
            'pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" '
            'in API group "" in the namespace "shop"'
        )


class TestReading:
    def test_list_and_get(self, client: Client, cluster: Lab) -> None:
        code, document = client.get("/api/v1/namespaces/fastapi/pods")
        assert (code, document["kind"], len(document["items"])) == (200, "PodList", 3)
        one = document["items"][0]
        assert client.get(f"/api/v1/namespaces/fastapi/pods/{one['metadata']['name']}") == (200, one)
        by_name = {pod["name"]: pod for pod in cluster.pods("fastapi")}
        assert one["status"]["podIP"] == by_name[one["metadata"]["name"]]["addresses"][0]

    def test_what_is_not_there(self, client: Client) -> None:
        code, document = client.get("/api/v1/namespaces/default/pods/nobody")
        assert (code, document["message"]) == (404, 'pods "nobody" not found')
        for path in (
            "/api/v2",
            "/apis/nothing.example/v1/things",
            "/api/v1/nothings",
            "/x",
            "/api/v1/namespaces/a/b/c/d",
        ):
            code, document = client.get(path)
            assert (code, document["kind"]) == (404, "Status")

    def test_selectors(self, client: Client) -> None:
        def names(query: str) -> set[str]:
            return {item["metadata"]["name"] for item in client.get(f"/api/v1/pods?{query}")[1]["items"]}

        assert names("fieldSelector=metadata.name%3Dclient,metadata.namespace%3Ddefault") == {"client"}
        assert len(names("labelSelector=app%3Dlets-ship-it")) == 3
        assert len(names("labelSelector=app+in+(web,lets-ship-it)")) == 6
        assert len(names("labelSelector=app+in+(web,lets-ship-it)&limit=1")) == 1
        assert client.get("/api/v1/pods?fieldSelector=spec.nonsense%3D1")[0] == 400

    def test_pages(self, client: Client) -> None:
        """Following the tokens gives what the whole list gives, each object once, and says how many are to come."""
        whole = client.get("/api/v1/pods")[1]
        pages, token = [], ""
        while not pages or token:
            code, page = client.get(f"/api/v1/pods?limit=4{f'&continue={token}' if token else ''}")
            token = page["metadata"].get("continue", "")
            pages.append(page)
            assert code == 200
        assert [item for page in pages for item in page["items"]] == whole["items"]
        left = range(len(whole["items"]) - 4, 0, -4)
        assert [page["metadata"].get("remainingItemCount") for page in pages] == [*left, None]
        assert {page["metadata"]["resourceVersion"] for page in pages} == {pages[0]["metadata"]["resourceVersion"]}
        selected = client.get("/api/v1/pods?limit=1&labelSelector=app%3Dlets-ship-it")[1]["metadata"]
        assert ("remainingItemCount" in selected, "continue" in selected) == (False, True)

    def test_what_is_too_large_is_refused(self, client: Client) -> None:
        path = "/api/v1/namespaces/default/configmaps"
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "x" * 10_000_000}}
        code, answer = client.send("POST", path, json.dumps(document).encode())
        assert (code, answer["reason"]) == (413, "RequestEntityTooLarge")
        assert answer["message"] == "Request entity too large: limit is 3145728"
        assert client.get("/api/v1/namespaces/default/configmaps/x")[0] == 404

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("data", [b"", b"\x00\xff", b"[" * 50_000, b'{"metadata": 5}', b'{"spec": {"ports": 1}}'])
    def test_rubbish_in_bodies_is_told_of(self, client: Client, method: str, data: bytes) -> None:
        """Whatever comes, the answer is a Status, and never the server's own trouble."""
        base = "/api/v1/namespaces/default/services"
        path = base if method == "POST" else f"{base}/no-such-service"
        for kind in ("application/json", "application/merge-patch+json", "application/vnd.kubernetes.protobuf", "x"):
            code, answer = client.send(method, path, data, kind)
            assert (answer["kind"], 400 <= code < 500) == ("Status", True), answer

    def test_methods_that_there_are_not(self, client: Client) -> None:
        for method, path in (
            ("POST", "/api/v1/namespaces/default/pods/client"),
            ("PUT", "/api/v1/namespaces/default/pods"),
            ("POST", "/api/v1/pods"),
            ("POST", "/version"),
            ("OPTIONS", "/api/v1/pods"),
        ):
            code, answer = client.send(method, path, b"{}")
            assert (code, answer["reason"]) == (405, "MethodNotAllowed"), (method, path)

    def test_a_pods_service_account_may_not_write(self, cluster: Lab) -> None:
        script = (
            "cd /var/run/secrets/kubernetes.io/serviceaccount && curl -sS --max-time 5 --cacert ca.crt -X DELETE "
            '-H "Authorization: Bearer $(cat token)" https://kubernetes.default.svc/api/v1/namespaces/shop'
        )
        document = json.loads(cluster.exec("default/client", "sh", "-c", script).stdout)
        assert (document["code"], document["reason"]) == (403, "Forbidden")

    def test_what_it_says_of_itself(self, client: Client) -> None:
        told = client.text("/livez?verbose&exclude=log")
        assert told == "[+]ping ok\n[+]log excluded: ok\n[+]etcd ok\nlivez check passed\n"
        assert client.text("/readyz/etcd") == client.text("/healthz") == "ok"
        assert client.get("/healthz/nothing")[0] == 404
        paths = client.get("/")[1]["paths"]
        assert {"/api/v1", "/apis/apps/v1", "/healthz/ping", "/version"} <= set(paths)
        assert all(client.text(path) for path in paths)
        assert [client.get(path)[0] for path in ("//", "/.", "/%2F")] == [404, 404, 404], "these are not the root"

    def test_watch_from_the_beginning_and_from_a_version(self, client: Client) -> None:
        path = "/api/v1/namespaces/fastapi/services?watch=1&timeoutSeconds=1"
        events = list(client.stream(path))
        assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [("ADDED", "lets-ship-it")]
        version = client.get("/api/v1/services")[1]["metadata"]["resourceVersion"]
        assert list(client.stream(f"{path}&resourceVersion={version}")) == []

    def test_a_watch_from_a_version_that_makes_no_sense(self, client: Client) -> None:
        assert client.get("/api/v1/pods?watch=1&resourceVersion=x")[0] == 400
        assert client.get("/api/v1/pods?watch=1&timeoutSeconds=x")[0] == 400

    def test_rubbish_does_no_harm(self, client: Client, config: dict[str, Any]) -> None:
        host, _, port = config["clusters"][0]["cluster"]["server"].removeprefix("https://").partition(":")
        import socket

        for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\x16\x03\x01" + os.urandom(100)):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(data)
        assert client.get("/version")[0] == 200


KUBECTLS = [
    path
    for path in (shutil.which("kubectl"), *sorted(map(str, Path("/usr/lib/google-cloud-sdk/bin").glob("kubectl.1.*"))))
    if path
]


@pytest.mark.parametrize("program", KUBECTLS or [None])
class TestKubectl:
    def run(self, program: str | None, cluster: Lab, *arguments: str) -> str:
        if program is None:
            pytest.skip("needs kubectl; to run it: scripts/setup")
        home = {"HOME": str(cluster.directory), "KUBECONFIG": cluster.kubeconfig(), "PATH": os.environ["PATH"]}
        command = [program, "--cache-dir", "/dev/null", *arguments]
        done = subprocess.run(command, env=home, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_get_in_its_forms(self, program: str | None, cluster: Lab) -> None:
        rows = [line.split() for line in self.run(program, cluster, "get", "pods", "-A").splitlines()]
        assert rows[0] == ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"]
        assert {tuple(row[2:4]) for row in rows[1:]} == {("1/1", "Running")}
        assert ["default", "client"] in [row[:2] for row in rows]
        wide = self.run(program, cluster, "get", "svc", "-n", "fastapi", "-o", "wide").splitlines()[1].split()
        assert wide[:5] == ["lets-ship-it", "ClusterIP", "10.96.100.50", "<none>", "8000/TCP"]
        assert wide[-1] == "app=lets-ship-it"
        nodes = self.run(program, cluster, "get", "nodes").splitlines()
        assert [line.split()[:3] for line in nodes[1:]] == [
            ["node1", "Ready", "control-plane"],
            ["node2", "Ready", "<none>"],
        ]
        slices = self.run(program, cluster, "get", "endpointslices", "-n", "fastapi", "--no-headers")
        assert slices.split()[1:3] == ["IPv4", "8000"]

    def test_json_and_jsonpath(self, program: str | None, cluster: Lab) -> None:
        document = json.loads(self.run(program, cluster, "get", "deploy", "-n", "fastapi", "-o", "json"))
        assert document["items"][0]["status"]["readyReplicas"] == 3
        path = "jsonpath={.spec.clusterIP}"
        assert self.run(program, cluster, "get", "svc", "web", "-n", "shop", "-o", path) == "10.96.20.1"

    def test_get_in_pages(self, program: str | None, cluster: Lab) -> None:
        if program is None:
            pytest.skip("needs kubectl; to run it: scripts/setup")
        command = [program, "--cache-dir", "/dev/null", "get", "pods", "-A", "--no-headers", "--chunk-size=4", "-v=6"]
        env = {"KUBECONFIG": cluster.kubeconfig(), "PATH": os.environ["PATH"], "HOME": str(cluster.directory)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
        whole = self.run(program, cluster, "get", "pods", "-A", "--no-headers", "--chunk-size=0").splitlines()
        assert [line.split()[:2] for line in done.stdout.splitlines()] == [line.split()[:2] for line in whole]
        assert done.stderr.count("/api/v1/pods?") == -(-len(whole) // 4)

    def test_version_and_resources(self, program: str | None, cluster: Lab) -> None:
        assert "v1.30.5" in self.run(program, cluster, "version")
        assert "endpointslices" in self.run(program, cluster, "api-resources")
