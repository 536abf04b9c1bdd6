"""List and watch: stores that stay equal to what the API has, filled by background threads.

What belongs here: the protocol of https://kubernetes.io/docs/reference/using-api/api-concepts/ (chunked lists, watch,
bookmarks, 410 Gone), with the choices of client-go's reflector.go, and when to try again. What does not: HTTP
(`tracer.kubeapi.connection`), the meaning of objects (`tracer.names`).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from tracer.errors import K8snetError
from tracer.kubeapi.config import Access
from tracer.kubeapi.connection import READ_SECONDS, ApiError, Connection, Expired, Unreachable, document, lines

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

PAGE = 100  # objects in one page of a list: pods are 5 to 20 kB of JSON, and parsing a page holds the interpreter
WATCH_SECONDS = 300  # the server ends a watch after this long, times 1 to 1.5; as client-go does
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
STEADY_SECONDS = 5.0  # a watch that lasted this long ended in the ordinary way
CLOSE_SECONDS = 0.2  # for threads to end; one that waits for an answer is left to end with the program

T = TypeVar("T")


class Store(Protocol[T]):
    """What a Reflector fills. Called from its thread only."""

    def replace(self, items: dict[str, T]) -> None:
        """All objects that there are, by "namespace/name" (or "name")."""

    def put(self, key: str, item: T) -> None:
        """An object that is new or has changed."""

    def remove(self, key: str) -> None:
        """An object that is gone."""


class Resource(NamedTuple, Generic[T]):
    """One kind of object: where the API has it, what of it is kept (raises for what is no such object), and where."""

    path: str
    reduce: Callable[[dict[str, Any]], T]
    store: Store[T]


class Mirror:
    """Keeps stores equal to what the API has. `find` says how to reach it, and is asked again whenever that fails."""

    def __init__(self, find: Callable[[], Access], resources: Sequence[Resource[Any]]) -> None:
        self._find = find
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._connection: Connection | None = None
        self._reflectors = [Reflector(resource, self, self._stop) for resource in resources]
        self._threads = [
            threading.Thread(target=reflector.run, name=f"watch {reflector.name}", daemon=True)
            for reflector in self._reflectors
        ]

    def start(self) -> None:
        """Begin, in daemon threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. Does not wait for an API that hangs. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        for reflector in self._reflectors:
            reflector.interrupt()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def settled(self, timeout: float) -> bool:
        """Wait until each resource is either loaded or known not to be had for now. False after `timeout` seconds."""
        end = time.monotonic() + timeout
        return all(reflector.settled.wait(max(0.0, end - time.monotonic())) for reflector in self._reflectors)

    def loaded(self) -> bool:
        """Whether every resource was listed once."""
        return all(reflector.loaded for reflector in self._reflectors)

    def trouble(self) -> list[str]:
        """What is wrong now, one line for each different cause; [] when all is well."""
        return list(dict.fromkeys(reflector.trouble for reflector in self._reflectors if reflector.trouble))

    def connection(self) -> Connection:
        """The connection of all reflectors. Raises K8snetError when nothing says how to reach the API."""
        with self._lock:
            if self._connection is None:
                self._access = self._find()
                self._connection = Connection(self._access)
            return self._connection

    def reconsider(self) -> None:
        """After a failure: if nothing works and the kubeconfig now says something else, use that.

        A cluster that was made anew has new certificates, and often another port.
        """
        if not all(reflector.trouble for reflector in self._reflectors):
            return
        with contextlib.suppress(K8snetError), self._lock:
            access = self._find()
            if self._connection is not None and access != self._access:
                self._connection.close()
                self._connection = None


class Reflector(Generic[T]):
    """Lists one resource, then watches it, for ever: `run` is the body of a thread."""

    def __init__(self, resource: Resource[T], mirror: Mirror, stop: threading.Event) -> None:
        self.name = resource.path.rsplit("/", 1)[1]
        self.settled = threading.Event()  # loaded, or failed once
        self.loaded = False
        self.trouble: str | None = None
        self._resource = resource
        self._mirror = mirror
        self._stop = stop
        self._response: BaseHTTPResponse | None = None
        self._odd = 0

    def run(self) -> None:
        """Mirror the resource until told to stop."""
        retry = _Retry()
        version: str | None = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if version is None:
                    version = self._list()
                    self._well()
                version = self._watch(version)
                steady = time.monotonic() - began >= STEADY_SECONDS
            except Expired:
                version, steady = None, False
            except Exception as error:  # whatever an API can send: it costs names, never the trace
                version, steady = None, False
                self._failed(error)
            if steady:
                retry = _Retry()
            else:
                retry.wait(self._stop)

    def interrupt(self) -> None:
        """Let a thread that waits for events see that it should stop."""
        response = self._response
        if response is not None:
            with contextlib.suppress(Exception):  # it may end at this very moment, in many ways
                response.shutdown()

    def _well(self) -> None:
        """The list is complete."""
        self.loaded = True
        self.trouble = f"{self._odd} of the {self.name} make no sense and are left out" if self._odd else None
        self.settled.set()

    def _failed(self, error: Exception) -> None:
        """Say why, and look whether the kubeconfig has changed."""
        if self._stop.is_set():
            return
        self.trouble = str(error) if isinstance(error, K8snetError) else f"{self.name}: {type(error).__name__}: {error}"
        self.settled.set()
        self._mirror.reconsider()

    def _list(self) -> str:
        """Fill the store with all objects; return their resource version."""
        items: dict[str, T] = {}
        self._odd = 0
        parameters: dict[str, str | int] = {"limit": PAGE}
        while True:
            page = self._mirror.connection().get(self._resource.path, **parameters)
            for item in _items(page):
                self._keep(item, items)
            metadata = page.get("metadata")
            if not isinstance(metadata, dict):
                raise ApiError(f"the list of {self.name} has no metadata")
            if not metadata.get("continue"):
                break
            parameters["continue"] = str(metadata["continue"])
        self._resource.store.replace(items)
        return str(metadata.get("resourceVersion") or "")

    def _keep(self, item: Any, items: dict[str, T]) -> None:
        """Reduce one object of a list; what is no such object is counted."""
        try:
            items[_key(item)] = self._resource.reduce(item)
        except (AttributeError, KeyError, TypeError, ValueError):
            self._odd += 1

    def _watch(self, version: str) -> str:
        """Apply events until the server ends the watch; return the last resource version. Raises Expired, ApiError."""
        seconds = int(WATCH_SECONDS * random.uniform(1.0, 1.5))
        response = self._mirror.connection().watch(
            self._resource.path,
            seconds + READ_SECONDS,
            watch=1,
            allowWatchBookmarks="true",
            resourceVersion=version,
            timeoutSeconds=seconds,
        )
        with contextlib.closing(response):
            self._response = response
            try:
                events = lines(response)
                while not self._stop.is_set() and (line := next(events, None)) is not None:
                    version = self._apply(document(line)) or version
            except Unreachable:
                pass  # cut in the middle, as proxies do: go on where it was; that fails if the server is gone
            finally:
                self._response = None
        return version

    def _apply(self, event: dict[str, Any]) -> str | None:
        """Apply one watch event; return the resource version that it brings."""
        kind, item = event.get("type"), event.get("object")
        if not isinstance(item, dict):
            raise ApiError(f"the watch of {self.name} sent an event without an object")
        if kind == "ERROR":
            failure = Expired if item.get("code") == 410 else ApiError
            raise failure(f"the watch of {self.name} ended: {item.get('message')}")
        metadata = item.get("metadata")
        if not isinstance(metadata, dict):
            raise ApiError(f"the watch of {self.name} sent an object without metadata")
        if kind == "DELETED":
            self._resource.store.remove(_key(item))
        elif kind in ("ADDED", "MODIFIED"):
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
                self._resource.store.put(_key(item), self._resource.reduce(item))
        version = metadata.get("resourceVersion")
        return str(version) if version else None


class _Retry:
    """Waits longer each time, and never quite as long as another tracer that failed at the same moment."""

    def __init__(self) -> None:
        self._seconds = FIRST_RETRY_SECONDS

    def wait(self, stop: threading.Event) -> None:
        """Wait, or return at once when told to stop."""
        stop.wait(self._seconds * random.uniform(0.5, 1.5))
        self._seconds = min(LAST_RETRY_SECONDS, 2 * self._seconds)


def _items(page: dict[str, Any]) -> list[Any]:
    """The objects of a list; an empty Go list is null."""
    items = page.get("items")
    if items is None and "metadata" in page:
        return []
    if not isinstance(items, list):
        raise ApiError("the API sends a list without items")
    return items


def _key(item: Any) -> str:
    """namespace/name, or name for what has no namespace. Raises KeyError or TypeError for what is no object."""
    metadata = item["metadata"]
    namespace, name = metadata.get("namespace"), metadata["name"]
    if not isinstance(name, str) or not name or not isinstance(namespace, str | None):
        raise TypeError("an object must have a name")
    return f"{namespace}/{name}" if namespace else name
