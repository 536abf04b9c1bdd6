"""HTTP: who asks for what, and which part of the API answers.

Stands for the generic API server's handler chain (k8s.io/apiserver/pkg/server) and its routes
(pkg/endpoints/installer.go).

What belongs here: requests, responses, methods. What does not: what any of them does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import ssl
from asyncio import sslproto
from http import HTTPStatus

from aiohttp import web

from labs.cluster.admission import NoServiceAccount
from labs.cluster.api import (
    aggregated,
    auth,
    bodies,
    discovery,
    execution,
    health,
    logs,
    openapi_proto,
    portforward,
    proxying,
    reviews,
    scale,
    status,
    tokens,
)
from labs.cluster.api.bodies import Options
from labs.cluster.api.containers import Locate
from labs.cluster.api.openapi import OpenApi
from labs.cluster.api.paths import Target
from labs.cluster.api.reading import as_list, find, form, get, list_items, selected_items
from labs.cluster.api.watching import watch
from labs.cluster.api.writing import Writer, read_delete_options
from labs.cluster.certificates import TokenIssuer
from labs.cluster.options import AddressPlan
from labs.cluster.resources import Object
from labs.cluster.store import Store

BACKLOG = 1024
LINE_BYTES = 1 << 20  # a command of exec is in the URL; Go takes so many bytes of headers
TLS_BUFFER = 32 * 1024  # a record has 16 KiB at most (RFC 8446, 5.1)
CREATED = 201
# How often, and at which distance in seconds, a pod's account is looked for (getServiceAccount in
# plugin/pkg/admission/serviceaccount).
ACCOUNT_ATTEMPTS = 10
ACCOUNT_SECONDS = (0.1, 0.2)
STREAMING = ("exec", "attach", "portforward")

log = logging.getLogger(__name__)


class ApiServer:
    """Serves a store over HTTPS."""

    def __init__(
        self,
        store: Store,
        issuer: TokenIssuer,
        context: ssl.SSLContext,
        plan: AddressPlan,
        locate: Locate = lambda _pod, _container: None,
        netns: int = -1,
    ) -> None:
        """`locate` finds the containers in which clients run commands; `netns`: descriptor of the network namespace of
        the node that it runs on."""
        self._locate = locate
        self._netns = netns
        self._store = store
        self._tokens = issuer
        self._context = context
        self._writer = Writer(store, plan)
        self._openapi = OpenApi(store.kinds)
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None, max_line_size=LINE_BYTES))
        self._ending = asyncio.Event()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets, in whichever network namespaces they are."""
        # asyncio fills a buffer of 256 KiB for each TLS connection, a quarter of a GB for 1,000 watches. Undocumented;
        # should the name be gone some day, memory is all that it costs.
        sslproto.SSLProtocol.max_size = TLS_BUFFER
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
        path = request.path.rstrip("/") or request.raw_path.partition("?")[0]  # "/." and "//" are not the root
        user = auth.impersonated(request, auth.authenticate(request, self._tokens))
        if (told := health.answer(request, path)) is not None:
            return told
        fixed = discovery.version() if path == "/version" else discovery.document(self._store.kinds, path, request.host)
        if fixed is not None:
            auth.authorize(user, request.method.lower(), None, "", "", path)
            if request.method != "GET":
                raise status.not_allowed()
            version = aggregated.wanted(path, request.headers.get("Accept", ""))
            if version is not None:
                whole = aggregated.document(self._store.kinds, path, version)
                return _json(whole, content_type=aggregated.content_type(version))
            return _json(fixed)
        if path.startswith("/openapi/"):
            auth.authorize(user, request.method.lower(), None, "", "", path)
            return _openapi(self._openapi, request, path)
        if reviews.is_review(path):
            return await self._review(request, user, path)
        if not path.startswith(("/api/", "/apis/")):
            raise status.no_such_path()
        target = Target.parse(self._store.kinds, path)
        verb = _verb(request, target)
        auth.authorize(user, verb, target.resource, target.namespace, target.name, path)
        if target.subresource in STREAMING:
            return await self._stream(request, target)
        if target.subresource == "proxy":
            return await proxying.proxy(request, target, self._store, self._netns)
        response = await self._serve(request, target, verb)
        if target.resource.custom is not None and target.resource.custom.warning and not response.prepared:
            response.headers.add("Warning", _warning(target.resource.custom.warning))
        return response

    async def _serve(self, request: web.BaseRequest, target: Target, verb: str) -> web.StreamResponse:
        match verb:
            case "get":
                return await self._get(request, target)
            case "list":
                return _json(list_items(self._store, request, target))
            case "watch":
                return await watch(self._store, request, target)
            case "create":
                return await self._create(request, target)
            case "update" | "patch":
                return await self._change(request, target, verb)
            case "delete" | "deletecollection":
                return await self._delete(request, target)
        raise status.not_allowed()

    async def _review(self, request: web.BaseRequest, user: auth.User, path: str) -> web.StreamResponse:
        if request.method != "POST":
            raise status.not_allowed()
        question = bodies.read_question(await bodies.read(request), bodies.content_type(request))
        return _json(reviews.review(path, user, question), CREATED)

    async def _get(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        if target.subresource == "scale":
            found = scale.scale_of(target.resource, find(self._store, target))
            return _json(form(request, Target(scale.SCALE, target.namespace, target.name), found))
        if target.subresource == "log":
            return await logs.send(request, find(self._store, target), self._locate)
        if target.subresource not in ("", "status"):
            raise status.not_allowed()
        return _json(get(self._store, request, target))

    async def _stream(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        answer = {"exec": execution.execute, "attach": execution.attach, "portforward": portforward.forward}
        return await answer[target.subresource](request, find(self._store, target), self._locate)

    async def _create(self, request: web.BaseRequest, target: Target) -> web.Response:
        data, options = await bodies.read(request), Options.of(request)
        if target.subresource == "eviction":
            return _json(self._writer.evict(target, options), CREATED)
        if target.subresource == "token":
            question = bodies.read_question(data, bodies.content_type(request))
            return _json(tokens.answer(find(self._store, target), question, self._tokens), CREATED)
        if target.name or (target.resource.namespaced and not target.namespace):
            raise status.not_allowed()
        for attempt in range(1, ACCOUNT_ATTEMPTS + 1):
            try:
                item = self._writer.create(target, data, bodies.content_type(request), options)
                break
            except status.ApiError as error:
                # The account `default` comes a moment after its namespace.
                missing = error.__cause__
                is_coming = isinstance(missing, NoServiceAccount) and missing.name == "default"
                if not is_coming or attempt == ACCOUNT_ATTEMPTS:
                    raise
            await asyncio.sleep(random.uniform(*ACCOUNT_SECONDS))
        return _json(form(request, target, item), CREATED, options.warnings)

    async def _change(self, request: web.BaseRequest, target: Target, verb: str) -> web.Response:
        data, options = await bodies.read(request), Options.of(request)
        if not target.name or target.subresource not in ("", "status", "scale", "finalize"):
            raise status.not_allowed()
        write = self._writer.update if verb == "update" else self._writer.patch
        item, is_new = write(target, data, bodies.content_type(request), options)
        if target.subresource == "scale":
            return _json(item, 200, options.warnings)
        return _json(form(request, target, item), CREATED if is_new else 200, options.warnings)

    async def _delete(self, request: web.BaseRequest, target: Target) -> web.Response:
        data = await bodies.read(request)
        if target.subresource:
            raise status.not_allowed()
        options = read_delete_options(data, bodies.content_type(request), lambda name: request.query.get(name, ""))
        if target.name:
            return _json(self._writer.delete(target, options))
        items: list[Object] = selected_items(self._store, request, target)
        self._writer.delete_collection(target, items, options)
        return _json(as_list(target.resource, items, str(self._store.version)))


def _openapi(documents: OpenApi, request: web.BaseRequest, path: str) -> web.Response:
    """/openapi/v2 in the form that is asked for, /openapi/v3 and what it leads to in JSON."""
    if path == "/openapi/v2":
        if any(name in request.headers.get("Accept", "") for name in (openapi_proto.ASKED, openapi_proto.GIVEN)):
            data = documents.swagger_as_protobuf()
            return web.Response(body=data, headers={"Content-Type": openapi_proto.GIVEN})
        return _json(documents.swagger())
    document = documents.index() if path == "/openapi/v3" else documents.group(path.removeprefix("/openapi/v3"))
    if document is None:
        raise status.no_such_path()
    return _json(document)


def _verb(request: web.BaseRequest, target: Target) -> str:
    """What the request wants, in the words of RBAC."""
    if target.subresource in STREAMING:
        return "create"  # whatever the method is: it starts something
    match request.method:
        case "GET" if request.query.get("watch", "").lower() in ("1", "true"):
            return "watch"
        case "GET":
            return "get" if target.name else "list"
        case "POST":
            return "create"
        case "PUT":
            return "update"
        case "PATCH":
            return "patch"
        case "DELETE":
            return "delete" if target.name else "deletecollection"
    return request.method.lower()


def _json(
    document: object, code: int = 200, warnings: list[str] | None = None, content_type: str = bodies.JSON_TYPE
) -> web.Response:
    data = json.dumps(document, separators=(",", ":")).encode()
    response = web.Response(body=data, status=code, headers={"Content-Type": content_type})
    for warning in warnings or ():
        response.headers.add("Warning", _warning(warning))
    return response


def _warning(words: str) -> str:
    """The header that makes kubectl print "Warning: …" (RFC 7234, section 5.5)."""
    return f"299 - {json.dumps(words)}"
