"""HTTP requests -> get, list, watch, discovery.

Stands for the request handlers of k8s.io/apiserver (pkg/endpoints/handlers). A path is
`/api/v1/…` or `/apis/GROUP/VERSION/…`, then `[namespaces/NAMESPACE/]PLURAL[/NAME]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from labs.cluster import selectors
from labs.cluster.api import auth, discovery, status
from labs.cluster.api.tables import table
from labs.cluster.certificates import TokenIssuer
from labs.cluster.resources import Object, Resource, by_path
from labs.cluster.store import ADDED, DELETED, MODIFIED, Change, Expired, NotFound, Store, Watch

BACKLOG = 1024
BOOKMARK_SECONDS = 30.0
WATCH_SECONDS = (1800, 3600)  # a watch without timeoutSeconds ends somewhere in between (--min-request-timeout)
MAX_BODY = 3 * 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means. `name` is "" for a collection, `namespace` "" for all."""

    resource: Resource
    namespace: str = ""
    name: str = ""

    @classmethod
    def parse(cls, path: str) -> Target:
        """Raises ApiError 404 for what we do not serve."""
        parts = path.strip("/").split("/")
        depth = 2 if parts[0] == "api" else 3
        prefix, rest = "/" + "/".join(parts[:depth]), parts[depth:]
        namespace = ""
        if len(rest) >= 3 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource = by_path(prefix, rest[0]) if rest else None
        if resource is None or len(rest) > 2 or (namespace and not resource.namespaced):
            raise status.no_such_path()
        name = rest[1] if len(rest) == 2 else ""
        if name and resource.namespaced and not namespace:
            raise status.no_such_path()
        return cls(resource, namespace, name)


class ApiServer:
    """Serves a store over HTTPS."""

    def __init__(self, store: Store, tokens: TokenIssuer, context: ssl.SSLContext) -> None:
        self._store = store
        self._tokens = tokens
        self._context = context
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        self._ending = asyncio.Event()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets, in whichever network namespaces they are."""
        await self._runner.setup()
        for listener in sockets:
            await web.SockSite(self._runner, listener, ssl_context=self._context, backlog=BACKLOG).start()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except status.ApiError as error:
            return _json(error.body, error.code)
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("%s %s", request.method, request.path)
            message = f"Internal error occurred: {error}"
            return _json(status.ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", message).body, 500)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        user = auth.authenticate(request, self._tokens)
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        fixed = discovery.version() if path == "/version" else discovery.document(path, request.host)
        if fixed is not None:
            auth.authorize(user, request.method.lower(), None, "", "", path)
            return _json(fixed)
        if not path.startswith(("/api/", "/apis/")):
            raise status.no_such_path()
        target = Target.parse(path)
        watching = request.query.get("watch", "").lower() in ("1", "true")
        verb = {"GET": "watch" if watching else "get" if target.name else "list"}.get(
            request.method, request.method.lower()
        )
        auth.authorize(user, verb, target.resource, target.namespace, target.name, path)
        if request.method != "GET":
            raise status.not_allowed()
        if watching:
            return await self._watch(request, target)
        return self._get(request, target) if target.name else self._list(request, target)

    def _get(self, request: web.BaseRequest, target: Target) -> web.Response:
        try:
            item = self._store.get(target.resource, target.namespace, target.name)
        except NotFound:
            raise status.not_found(target.resource, target.name) from None
        if _wants_table(request):
            return _json(table(target.resource, [item], item["metadata"]["resourceVersion"], _include(request)))
        return _json(item)

    def _list(self, request: web.BaseRequest, target: Target) -> web.Response:
        selected = _selection(request, target)
        items = [item for item in self._store.list(target.resource, target.namespace) if selected(item)]
        version = str(self._store.version)
        if _wants_table(request):
            return _json(table(target.resource, items, version, _include(request)))
        kind = f"{target.resource.kind}List"
        metadata = {"resourceVersion": version}
        return _json({"kind": kind, "apiVersion": target.resource.api_version, "metadata": metadata, "items": items})

    async def _watch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Send changes, one JSON object to a line, until the client goes or the time is over."""
        stream = _Stream(request, target)
        since = request.query.get("resourceVersion", "")
        start: list[Object] = []
        try:
            if since in ("", "0"):
                watch = self._store.watch(target.resource)
                start = self._store.list(target.resource, target.namespace)
            else:
                watch = self._store.watch(target.resource, int(since))
        except ValueError:
            raise status.bad_request(
                f'resourceVersion: Invalid value: "{since}": strconv.ParseUint: invalid syntax'
            ) from None
        except Expired as error:
            raise status.expired(error.message) from None
        with watch:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                for item in start:
                    if line := stream.event(ADDED, item):
                        await response.write(line)
                async for lines in self._batches(watch, stream, request):
                    await response.write(lines)
            return response

    async def _batches(self, watch: Watch, stream: _Stream, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The lines of a watch, as many at a time as there are; bookmarks when nothing happens."""
        try:
            seconds = float(request.query.get("timeoutSeconds", 0)) or random.uniform(*WATCH_SECONDS)
        except ValueError:
            seconds = random.uniform(*WATCH_SECONDS)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                change = await asyncio.wait_for(watch.next(), min(left, BOOKMARK_SECONDS))
                lines = [stream.change(change)]
                while watch.pending():
                    lines.append(stream.change(await watch.next()))
            except TimeoutError:
                lines = [stream.bookmark(self._store.version)]
            except Expired as error:
                yield stream.failure(status.expired(error.message))
                return
            if data := b"".join(lines):
                yield data


class _Stream:
    """Turns changes into the lines of one client's watch."""

    def __init__(self, request: web.BaseRequest, target: Target) -> None:
        self._target = target
        self._selected = _selection(request, target)
        self._as_table = _wants_table(request)
        self._include = _include(request)
        self._bookmarks = request.query.get("allowWatchBookmarks", "").lower() in ("1", "true")

    def change(self, change: Change) -> bytes:
        """The line for a change: an object that comes into the selection is ADDED to it, one that leaves is DELETED."""
        is_in = change.kind != DELETED and self._selected(change.item)
        was_in = change.previous is not None and self._selected(change.previous)
        if is_in:
            return self.event(MODIFIED if was_in else ADDED, change.item)
        return self.event(DELETED, change.item, force=True) if was_in else b""

    def event(self, kind: str, item: Object, *, force: bool = False) -> bytes:
        """The line that says so, or nothing when the object is not selected."""
        if not force and not self._selected(item):
            return b""
        shown: Any = item
        if self._as_table:
            shown = table(self._target.resource, [item], item["metadata"]["resourceVersion"], self._include)
        return _line({"type": kind, "object": shown})

    def bookmark(self, version: int) -> bytes:
        """The line that says how far we are, for a client that wants to know."""
        if not self._bookmarks or self._as_table:
            return b""
        resource = self._target.resource
        metadata = {"resourceVersion": str(version), "creationTimestamp": None}
        shown = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return _line({"type": "BOOKMARK", "object": shown})

    def failure(self, error: status.ApiError) -> bytes:
        """The last line of a watch that can't go on."""
        return _line({"type": "ERROR", "object": error.body})


def _selection(request: web.BaseRequest, target: Target) -> selectors.Predicate:
    """Which objects a request is about. Raises ApiError 400 for selectors that make no sense."""
    try:
        by_label = selectors.label_selector(request.query.get("labelSelector", ""))
        by_field = selectors.field_selector(request.query.get("fieldSelector", ""), target.resource)
    except ValueError as error:
        raise status.bad_request(str(error)) from None
    place, name = target.namespace, target.name

    def selected(item: Object) -> bool:
        metadata = item["metadata"]
        if (place and metadata.get("namespace") != place) or (name and metadata["name"] != name):
            return False
        return by_label(item) and by_field(item)

    return selected


def _wants_table(request: web.BaseRequest) -> bool:
    """Whether the first kind of answer that the client takes, and that we have, is a table."""
    for wanted in request.headers.get("Accept", "").split(","):
        parts = [part.strip() for part in wanted.split(";")]
        if parts[0] in ("application/json", "*/*"):
            # v1beta1 is what kubectl before 1.16 asks for; the form is the same, so it is given v1.
            return "as=Table" in parts and "v=v1" in parts
    return False


def _include(request: web.BaseRequest) -> str:
    return request.query.get("includeObject", "Metadata")


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _json(document: object, code: int = 200) -> web.Response:
    data = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(body=data, status=code, content_type="application/json")
