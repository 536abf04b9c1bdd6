"""The subresource proxy of Services and pods: an HTTP request that the API server makes on behalf of its client.

Stands for pkg/registry/core/{service,pod} (ResourceLocation) and k8s.io/apimachinery/pkg/util/proxy. The request comes
from the control plane's node, straight to a pod: no ClusterIP and no rule of kube-proxy is on its way. Left out: nodes,
upgrades of the connection (WebSockets), and links in pages, which are not rewritten.

What belongs here: whom a name means, and copying. What does not: paths of the API (`labs.cluster.api.paths`).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from aiohttp import web

from labs.cluster import linux
from labs.cluster.api import status
from labs.cluster.api.paths import Target
from labs.cluster.api.reading import find
from labs.cluster.resources import ENDPOINTS, PODS
from labs.cluster.store import Store

CHUNK = 1 << 16
WAY = re.compile(r"/api/v1/namespaces/[^/]+/(?:services|pods)/[^/]+/proxy(.*)")
# What is between two neighbours (RFC 9110, 7.6.1), or between the client and the API.
NOT_PASSED_ON = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "authorization", "host", "content-length"),
    }
)


async def proxy(request: web.BaseRequest, target: Target, store: Store, netns: int) -> web.StreamResponse:
    """Pass a request on, from the network namespace `netns`. Raises ApiError 400, 404 and 503."""
    scheme, name, port = _parts(target.name)
    target = Target(target.resource, target.namespace, name, target.subresource)
    place = (_of_pod if target.resource == PODS else _of_service)(store, target, port)
    found = WAY.fullmatch(request.raw_path)
    rest = found[1] if found else ""
    if not rest.startswith("/"):  # links in what is there are to lead below it
        path, mark, query = request.raw_path.partition("?")
        return web.Response(status=HTTPStatus.MOVED_PERMANENTLY, headers={"Location": f"{path}/{mark}{query}"})
    return await _pass_on(request, f"{scheme or 'http'}://{place}{rest}", place, netns)


def _parts(text: str) -> tuple[str, str, str]:
    """Scheme, name and port in NAME, NAME:PORT or SCHEME:NAME:PORT (utilnet.SplitSchemeNamePort)."""
    parts = text.split(":")
    if len(parts) <= 3:
        scheme, name, port = {1: ["", *parts, ""], 2: ["", *parts]}.get(len(parts), parts)
        if name and scheme in ("", "http", "https"):
            return scheme, name, port
    raise status.bad_request(f'invalid service request "{text}"')


def _of_pod(store: Store, target: Target, port: str) -> str:
    """Address and port of a pod; its first one where none is named."""
    pod = find(store, target)
    ports = [entry["containerPort"] for one in pod["spec"]["containers"] for entry in one.get("ports") or ()]
    address = pod["status"].get("podIP")
    if not address or (port and not port.isdecimal()):
        raise status.bad_request("address not allowed")
    return _joined(address, int(port or (ports or [80])[0]))


def _of_service(store: Store, target: Target, port: str) -> str:
    """Address and port of one of a Service's ready endpoints."""
    name = target.name
    if port.isdecimal():
        found = [entry for entry in find(store, target)["spec"].get("ports") or () if entry["port"] == int(port)]
        if not found:
            raise _unavailable(f'no service port {port} found for service "{name}"')
        port = found[0].get("name") or ""
    endpoints = find(store, Target(ENDPOINTS, target.namespace, name))
    places = [
        _joined(address["ip"], entry["port"])
        for subset in endpoints.get("subsets") or ()
        for entry in subset.get("ports") or ()
        for address in subset.get("addresses") or ()
        if (entry.get("name") or "") == port
    ]
    if not places:
        raise _unavailable(f'no endpoints available for service "{name}"')
    return random.choice(places)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _unavailable(message: str) -> status.ApiError:
    return status.ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailable", message)


async def _pass_on(request: web.BaseRequest, url: str, place: str, netns: int) -> web.StreamResponse:
    import aiohttp
    from yarl import URL

    def make_socket(info: Any) -> socket.socket:
        with linux.network_namespace(netns):
            return socket.socket(info[0], info[1], info[2])

    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in NOT_PASSED_ON]
    headers += [("X-Forwarded-Host", request.host), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Uri", request.path)]
    connector = aiohttp.TCPConnector(socket_factory=make_socket, force_close=True, ssl=False)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        try:
            answer = await session.request(
                request.method,
                URL(url, encoded=True),
                headers=headers,
                data=_body(request) if request.can_read_body else None,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            words = f"dial tcp {place}: connect: {os.strerror(error.os_error.errno or 0).lower()}"
            raise _unavailable(f"error trying to reach service: {words}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _unavailable(f"error trying to reach service: {error or 'EOF'}") from None
        return await _bring_back(request, answer)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_chunked(CHUNK):
        yield chunk


async def _bring_back(request: web.BaseRequest, answer: Any) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in NOT_PASSED_ON:
            response.headers.add(name, value)
    with contextlib.suppress(ConnectionError):  # the client, or the pod, may go in the middle
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    return response
