"""Watches: changes as lines of JSON, for as long as the client wants them.

Stands for k8s.io/apiserver/pkg/endpoints/handlers/watch.go, and for the watch cache's filter of events by selector.
Left out: lists as streams (sendInitialEvents), which Kubernetes 1.30 refuses as well, whereupon clients list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.api.paging import check_watch
from labs.cluster.api.paths import Target
from labs.cluster.api.reading import include, selection, shown, wants_table
from labs.cluster.api.tables import table
from labs.cluster.resources import Object
from labs.cluster.store import ADDED, DELETED, MODIFIED, Change, Expired, Store, Watch

BOOKMARK_SECONDS = 30.0
WATCH_SECONDS = (1800, 3600)  # a watch without timeoutSeconds ends somewhere in between (--min-request-timeout)


async def watch(store: Store, request: web.BaseRequest, target: Target) -> web.StreamResponse:
    """Send changes, one JSON object to a line, until the client goes or the time is over."""
    check_watch(request)
    stream, seconds = _Stream(request, target), _seconds(request)
    changes, start = _start(store, request, target)
    with changes:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            for item in start:
                if line := stream.event(ADDED, item):
                    await response.write(line)
            async for lines in _batches(store, changes, stream, seconds):
                await response.write(lines)
        return response


def _start(store: Store, request: web.BaseRequest, target: Target) -> tuple[Watch, list[Object]]:
    """The changes from where the client wants them, and the objects that it is told of first."""
    since = request.query.get("resourceVersion", "")
    try:
        if since in ("", "0"):
            return store.watch(target.resource.stored), store.list(target.resource.stored, target.namespace)
        return store.watch(target.resource.stored, int(since)), []
    except ValueError:
        raise status.bad_request(
            f'resourceVersion: Invalid value: "{since}": strconv.ParseUint: invalid syntax'
        ) from None
    except Expired as error:
        raise status.expired(error.message) from None


def _seconds(request: web.BaseRequest) -> float:
    """How long the client wants to watch. Raises ApiError 400."""
    text = request.query.get("timeoutSeconds", "")
    try:
        wanted = int(text or 0)
    except ValueError:
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
    return wanted if wanted > 0 else random.uniform(*WATCH_SECONDS)


async def _batches(store: Store, changes: Watch, stream: _Stream, seconds: float) -> AsyncIterator[bytes]:
    """The lines of a watch, as many at a time as there are; bookmarks when nothing happens."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            change = await asyncio.wait_for(changes.next(), min(left, BOOKMARK_SECONDS))
            lines = [stream.change(change)]
            while changes.pending():
                lines.append(stream.change(await changes.next()))
        except TimeoutError:
            lines = [stream.bookmark(store.version)]
        except Expired as error:
            yield stream.failure(status.expired(error.message))
            return
        if data := b"".join(lines):
            yield data


class _Stream:
    """Turns changes into the lines of one client's watch."""

    def __init__(self, request: web.BaseRequest, target: Target) -> None:
        self._target = target
        self._selected = selection(request, target)
        self._as_table = wants_table(request)
        self._include = include(request)
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
        document: Any = shown(self._target.resource, item)
        if self._as_table:
            document = table(self._target.resource, [item], item["metadata"]["resourceVersion"], self._include)
        return _line({"type": kind, "object": document})

    def bookmark(self, version: int) -> bytes:
        """The line that says how far we are, for a client that wants to know."""
        if not self._bookmarks or self._as_table:
            return b""
        resource = self._target.resource
        metadata = {"resourceVersion": str(version), "creationTimestamp": None}
        document = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return _line({"type": "BOOKMARK", "object": document})

    def failure(self, error: status.ApiError) -> bytes:
        """The last line of a watch that can't go on."""
        return _line({"type": "ERROR", "object": error.body})


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
