"""Requests to one API server: urllib3's pool, TLS, credentials, and answers within bounds.

What belongs here: one request and its answer. What does not: what to ask for and when (`tracer.kubeapi.mirror`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tracer.errors import K8snetError
from tracer.kubeapi.config import Access

if TYPE_CHECKING:
    import ssl

    from urllib3 import BaseHTTPResponse, PoolManager

CONNECT_SECONDS = 3.0
READ_SECONDS = 15.0  # between two bytes
DOCUMENT_SECONDS = 60.0  # for all of an answer, however slowly it trickles
MAX_DOCUMENT = 64 << 20  # bytes of one answer
MAX_LINE = 8 << 20  # bytes of one watch event: etcd takes objects of 1.5 MB
TOKEN_SECONDS = 60.0  # a token file is read again after this long


class ApiError(K8snetError):
    """The API did not give what was asked; the message says why."""


class Expired(ApiError):
    """The resource version is too old (410 Gone): list again."""


class NotFound(ApiError):
    """There is no such object (404 Not Found), or no such kind."""


class Unreachable(ApiError):
    """There was no answer at all."""


class Connection:
    """Requests to one API server. Raises K8snetError when the certificates are of no use."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._pool = _pool(access)
        self._token: str | None = access.token
        self._token_read = float("-inf")

    def close(self) -> None:
        """Close idle connections. Idempotent."""
        self._pool.clear()

    def get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        """One JSON document. Raises ApiError."""
        response = self._request(path, parameters, READ_SECONDS)
        try:
            return document(_body(response))
        finally:
            response.release_conn()

    def watch(self, path: str, seconds: float, **parameters: str | int) -> BaseHTTPResponse:
        """The response that carries watch events, its headers read. Close it in the end. Raises ApiError."""
        return self._request(path, parameters, seconds)

    def _request(self, path: str, parameters: dict[str, str | int], read_seconds: float) -> BaseHTTPResponse:
        """Send a GET; return a good response with its body unread."""
        import urllib3

        url = f"{self._access.server}{path}?{urlencode(parameters)}"
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds)
        try:
            response = self._pool.request(
                "GET",
                url,
                headers=self._headers(),
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=timeout,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{self._access.server} does not answer: {_cause(error)}") from error
        except (OSError, ValueError) as error:
            raise Unreachable(f"{self._access.server} can't be asked: {error}") from error
        if response.status != 200:
            with contextlib.closing(response):
                raise _refusal(response, path)
        return response

    def _headers(self) -> dict[str, str]:
        """Who we are."""
        import urllib3

        headers = {"Accept": "application/json", "User-Agent": "k8snet-trace"}
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif self._access.username and self._access.password:
            credentials = f"{self._access.username}:{self._access.password}"
            headers.update(urllib3.make_headers(basic_auth=credentials))
        return headers

    def _current_token(self) -> str | None:
        """The token; that of a token file, which rotates, is read again now and then."""
        path = self._access.token_file
        if path is not None and time.monotonic() - self._token_read >= TOKEN_SECONDS:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                self._token = path.read_text(encoding="ascii").strip()
                self._token_read = time.monotonic()
        return self._token


def _pool(access: Access) -> PoolManager:
    """Connections to the server, with keepalives: a server that vanished without a word is noticed in a minute."""
    import socket

    import urllib3
    from urllib3.connection import HTTPConnection

    options = [
        *HTTPConnection.default_socket_options,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]
    arguments: dict[str, Any] = {"num_pools": 2, "maxsize": 8, "socket_options": options}
    if access.server.startswith("https:"):
        arguments["ssl_context"] = _tls(access)
        if access.tls_server_name:
            arguments["server_hostname"] = arguments["assert_hostname"] = access.tls_server_name
        if access.insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the kubeconfig asked for it
            arguments["assert_hostname"] = False
    try:
        return (
            urllib3.ProxyManager(access.proxy_url, **arguments)
            if access.proxy_url
            else urllib3.PoolManager(**arguments)
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise ApiError(f"the proxy {access.proxy_url} of {access.source} can't be used: {error}") from error


def _tls(access: Access) -> ssl.SSLContext:
    """The TLS settings that a kubeconfig asks for."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif access.certificate_authority is not None:
            context.load_verify_locations(cadata=access.certificate_authority.decode("ascii"))
        else:
            context.load_default_certs()
        if access.client_certificate is not None:
            _load_client_certificate(context, access.client_certificate, access.client_key or b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ApiError(f"the certificates in {access.source} can't be used: {error}") from error
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL reads them from a file only: one in memory, without a name, so that the key never meets a disk."""
    fd = os.memfd_create("client certificate", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        # a password callback, so that an encrypted key raises and does not ask at the terminal
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")


def _body(response: BaseHTTPResponse) -> bytes:
    """The whole body, within bounds of size and time."""
    import urllib3

    end = time.monotonic() + DOCUMENT_SECONDS
    body = bytearray()
    try:
        while chunk := response.read1(1 << 20):
            body += chunk
            if len(body) > MAX_DOCUMENT or time.monotonic() > end:
                raise ApiError(f"the API sends without end ({len(body)} bytes of one answer)")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unreachable(f"the API broke off: {_cause(error)}") from error
    return bytes(body)


def lines(response: BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of an answer as they come, until it ends. Raises Unreachable when it is cut, ApiError for no line."""
    import urllib3

    rest = b""
    while True:
        try:
            chunk = response.read1(1 << 16)
        except urllib3.exceptions.ReadTimeoutError:
            return  # the server should have ended it before
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"the API broke off a watch: {_cause(error)}") from error
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise ApiError("the API sends a watch event without end")
        yield from filter(None, lines)


def document(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises ApiError for anything else."""
    import json

    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the API sends what is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ApiError("the API sends JSON that is no object")
    return document


def _refusal(response: BaseHTTPResponse, path: str) -> ApiError:
    """The error for a status other than 200, with the words of the API's Status object if there is one."""
    message = response.reason or "refused"
    with contextlib.suppress(ApiError):
        message = str(document(_body(response)).get("message") or message)
    if response.status == 410:
        return Expired(message)
    words = f"{path}: {response.status} {message[:300]}"
    return NotFound(words) if response.status == 404 else ApiError(words)


def _cause(error: BaseException) -> str:
    """The innermost reason, without urllib3's wrapping: "HTTPConnection(host=…): Failed to …: [Errno 111] …"."""
    while isinstance(reason := getattr(error, "reason", None), BaseException):
        error = reason
    text = str(error)
    if "Connection" in text.partition("(")[0]:
        text = text.partition("): ")[2] or text
    return text or type(error).__name__
