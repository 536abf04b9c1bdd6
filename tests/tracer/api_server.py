"""A Kubernetes API server for tests: real HTTP, list and watch of a few resources, and every way to be a bad one.

What belongs here: the server's side of the protocol. What does not: what clients do with it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tracer.kubeapi import Access

PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"
NODES = "/api/v1/nodes"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"

Json = dict[str, Any]


class ApiServer:
    """Holds objects, answers lists, streams watches. Attributes that end in `_for` hold paths that misbehave."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []  # path, parameters, headers in lower case
        self.status_for: dict[str, int] = {}  # answer with this status
        self.rubbish_for: dict[str, bytes] = {}  # answer with these bytes, whatever they are
        self.rubbish_in_watch_for: dict[str, bytes] = {}
        self.hang_for: set[str] = set()  # take the request and say nothing
        self.expired_pages = 0  # so many continue tokens are 410 Gone
        self.version = 100
        self._objects: dict[str, dict[str, Json]] = {path: {} for path in (PODS, SERVICES, NODES, SLICES)}
        self._watches: list[tuple[str, queue.Queue[bytes | None]]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", port), self, tls)
        self.port: int = self._server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.access = Access("test", self.url)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disappear: the port refuses, watches are cut."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """End all watches that run."""
        with self._lock:
            watches, self._watches = self._watches, []
        for _, events in watches:
            events.put(None)

    def put(self, path: str, *objects: Json) -> None:
        """Create or change objects; watches hear of it."""
        for item in objects:
            with self._lock:
                kind = "MODIFIED" if _key(item) in self._objects[path] else "ADDED"
                self._objects[path][_key(item)] = self._stamp(item)
            self.send(path, {"type": kind, "object": item})

    def remove(self, path: str, item: Json) -> None:
        """Delete an object; watches hear of it."""
        with self._lock:
            del self._objects[path][_key(item)]
            self._stamp(item)
        self.send(path, {"type": "DELETED", "object": item})

    def silently_remove(self, path: str, item: Json) -> None:
        """Delete an object behind the backs of watches, as while a client was away."""
        with self._lock:
            del self._objects[path][_key(item)]

    def send(self, path: str, event: Json | bytes) -> None:
        """Send an event to the watches of a path."""
        line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
        with self._lock:
            watches = [events for watched, events in self._watches if watched == path]
        for events in watches:
            events.put(line)

    def watching(self, *paths: str, timeout: float = 5.0) -> bool:
        """Wait until each path is being watched."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with self._lock:
                if set(paths) <= {path for path, _ in self._watches}:
                    return True
            time.sleep(0.005)
        return False

    def lists(self, path: str) -> list[dict[str, str]]:
        """The parameters of the lists asked for so far."""
        return [parameters for asked, parameters, _ in self.requests if asked == path and "watch" not in parameters]

    def watches(self, path: str) -> list[dict[str, str]]:
        """The parameters of the watches asked for so far."""
        return [parameters for asked, parameters, _ in self.requests if asked == path and "watch" in parameters]

    def page(self, path: str, parameters: dict[str, str]) -> tuple[int, Json]:
        """The answer to a list."""
        with self._lock:
            items = [item for _, item in sorted(self._objects[path].items())]
            start = int(parameters.get("continue") or 0)
            if start and self.expired_pages:
                self.expired_pages -= 1
                return 410, {"kind": "Status", "code": 410, "message": "the continue parameter is too old"}
            end = start + int(parameters.get("limit") or len(items) or 1)
            metadata: Json = {"resourceVersion": str(self.version)}
            if end < len(items):
                metadata["continue"] = str(end)
            return 200, {"metadata": metadata, "items": items[start:end] or None}  # an empty Go list is null

    def stream(self, path: str) -> Iterator[bytes]:
        """The body of a watch."""
        events: queue.Queue[bytes | None] = queue.Queue()
        with self._lock:
            if self._closed.is_set():
                return
            self._watches.append((path, events))
        while (line := events.get()) is not None:
            yield line

    def hang(self) -> None:
        """Say nothing until the server ends."""
        self._closed.wait()

    def _stamp(self, item: Json) -> Json:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        return item


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], api: ApiServer, tls: ssl.SSLContext | None) -> None:
        self.api = api
        self.tls = tls
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):  # a client that goes away, or that does not trust us
            if self.tls is None:
                super().finish_request(request, client_address)
            else:
                with self.tls.wrap_socket(request, server_side=True) as wrapped:
                    super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing to the terminal."""

    def do_GET(self) -> None:
        api = self.server.api
        url = urlsplit(self.path)
        parameters = {key: values[0] for key, values in parse_qs(url.query).items()}
        api.requests.append((url.path, parameters, {name.lower(): value for name, value in self.headers.items()}))
        if url.path in api.hang_for:
            api.hang()
            self.close_connection = True
        elif url.path in api.rubbish_for:
            self._body(200, api.rubbish_for[url.path])
        elif url.path in api.status_for:
            status = api.status_for[url.path]
            self._body(
                status, json.dumps({"kind": "Status", "code": status, "message": f"no {url.path} for you"}).encode()
            )
        elif "watch" in parameters:
            self._watch(url.path)
        else:
            status, document = api.page(url.path, parameters)
            self._body(status, json.dumps(document).encode())

    def _body(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, path: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if path in self.server.api.rubbish_in_watch_for:
            self._chunk(self.server.api.rubbish_in_watch_for[path])
        for line in self.server.api.stream(path):
            self._chunk(line)
        self._chunk(b"")
        self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _key(item: Json) -> str:
    metadata = item["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else str(metadata["name"])


def pod(
    name: str, *ips: str, namespace: str = "default", uid: str | None = None, node: str = "node1", **more: Any
) -> Json:
    """A running pod. more: host_network, phase, terminating, annotations."""
    metadata: Json = {"name": name, "namespace": namespace, "uid": uid or f"uid-of-{namespace}-{name}"}
    if more.get("terminating"):
        metadata["deletionTimestamp"] = "2026-11-22T09:00:00Z"
    if more.get("annotations"):
        metadata["annotations"] = more["annotations"]
    spec: Json = {"nodeName": node}
    if more.get("host_network"):
        spec["hostNetwork"] = True
    status: Json = {"phase": more.get("phase", "Running")}
    if ips:
        status |= {"podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
    return {"metadata": metadata, "spec": spec, "status": status}


def service(name: str, *ips: str, ports: list[Json] | None = None, namespace: str = "default", **spec: Any) -> Json:
    """A Service; ingress: addresses of its load balancer; other keywords go into its spec."""
    ingress = [{"ip": ip} for ip in spec.pop("ingress", [])]
    port = {"name": "http", "protocol": "TCP", "port": 80}
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ips[0] if ips else None, "clusterIPs": list(ips), "ports": ports or [port], **spec},
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def endpoint_slice(name: str, of: str, port: int, *endpoints: Json, namespace: str = "default") -> Json:
    """An EndpointSlice of the Service `of`."""
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    }


def endpoint(address: str, name: str, ready: bool | None = True, serving: bool | None = None) -> Json:
    """One endpoint, which is a pod."""
    conditions = {"ready": ready, "serving": serving}
    target = {"kind": "Pod", "name": name, "namespace": "default"}
    return {"addresses": [address], "conditions": conditions, "targetRef": target}


def node(name: str, *addresses: str, pod_cidrs: tuple[str, ...] = ()) -> Json:
    """A node."""
    listed = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [*listed, {"type": "Hostname", "address": name}]},
    }
