"""The subresource log: what a container has written.

Stands for pkg/registry/core/pod/rest/log.go, the kubelet's /containerLogs (kubelet_pods.go, validateContainerLogStatus)
and its reader (pkg/kubelet/kuberuntime/logs). Left out: one stream only (`stream=Stderr`).

What belongs here: which log, which part of it. What does not: writing it (`labs.cluster.containerlogs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.api.containers import Locate, Place, container_of
from labs.cluster.containerlogs import ContainerLog, parse, path_of, stamp, tail_start
from labs.cluster.fielderrors import FieldError, Invalid, forbidden, invalid
from labs.cluster.resources import Object

GONE_SECONDS = 5.0  # how often a follower is looked for while its container is silent
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What part of a log is wanted (PodLogOptions). None: no limit."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail: int | None = None
    limit: int | None = None
    since: bytes = b""  # as the log has it

    @classmethod
    def of(cls, query: Mapping[str, str], pod: str) -> LogOptions:
        """Raises ApiError 400 and 422 (ValidatePodLogOptions)."""
        tail, limit, seconds = (_number(query, name) for name in ("tailLines", "limitBytes", "sinceSeconds"))
        wrong: list[FieldError] = []
        if tail is not None and tail < 0:
            wrong.append(invalid("tailLines", tail, "must be greater than or equal to 0"))
        if limit is not None and limit < 1:
            wrong.append(invalid("limitBytes", limit, "must be greater than 0"))
        if seconds is not None and query.get("sinceTime"):
            wrong.append(forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"))
        elif seconds is not None and seconds < 1:
            wrong.append(invalid("sinceSeconds", seconds, "must be greater than 0"))
        if wrong:
            raise status.of_error(Invalid("PodLogOptions", pod, wrong))
        follow, previous, timestamps = (
            query.get(name, "").lower() in ("1", "true") for name in ("follow", "previous", "timestamps")
        )
        since = _since(seconds, query.get("sinceTime", ""))
        return cls(query.get("container", ""), follow, previous, timestamps, tail, limit, since)


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def _since(seconds: int | None, text: str) -> bytes:
    if seconds is not None:
        return stamp(max(time.time_ns() - seconds * 1_000_000_000, 0))
    if not text:
        return b""
    try:
        when = datetime.datetime.fromisoformat(text)
        return stamp(int(max(when.timestamp(), 0) * 1_000_000) * 1000)
    except (ValueError, OverflowError):
        raise status.bad_request(
            f'parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse "{text}" as "2006"'
        ) from None


async def send(request: web.BaseRequest, pod: Object, locate: Locate) -> web.StreamResponse:
    """Answer with a container's log, and go on with it if the client wants to follow. Raises ApiError 400 and 422."""
    options = LogOptions.of(request.query, pod["metadata"]["name"])
    container = container_of(pod, options.container)
    if not pod["spec"].get("nodeName"):
        return web.Response(content_type="text/plain")
    place = locate(pod, container)
    identifier = _identifier(pod, container, options, place)
    writing = place.io.log if place is not None and place.id == identifier else None
    try:
        source = _Source(path_of(pod, container, identifier), writing if options.follow else None)
    except FileNotFoundError:
        return web.Response(text=f"unable to retrieve container logs for k8snet://{identifier}")
    with contextlib.closing(source):
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        if options.tail is not None:
            source.skip_to_tail(options.tail)
        part = _Part(options)
        with contextlib.suppress(ConnectionError):
            while not part.complete and (lines := await source.read(request)) is not None:
                if data := part.of(lines):
                    await response.write(data)
                await asyncio.sleep(0)  # a long log is not to hold up all others
    return response


def _identifier(pod: Object, container: str, options: LogOptions, place: Place | None) -> str:
    """The id of the container whose log is wanted. Raises ApiError 400."""
    name = pod["metadata"]["name"]
    told = pod.get("status") or {}
    entries = (*(told.get("containerStatuses") or ()), *(told.get("initContainerStatuses") or ()))
    known = next((entry for entry in entries if entry["name"] == container), None)
    if known is None:
        if place is not None and not options.previous:
            return place.id
        raise status.bad_request(f'container "{container}" in pod "{name}" is not available')
    state, last = known.get("state") or {}, _id((known.get("lastState") or {}).get("terminated"))
    if options.previous:
        if not last:
            raise status.bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
        return last
    if "running" in state and known.get("containerID"):
        return str(known["containerID"]).partition("://")[2]
    if found := _id(state.get("terminated")) or last:
        return found
    if place is not None:  # it runs, and has not said that it serves
        return place.id
    reason = {
        "ErrImagePull": "image can't be pulled",
        "ImagePullBackOff": "trying and failing to pull image",
    }.get(why := state.get("waiting", {}).get("reason", "ContainerCreating"), why)
    raise status.bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')


def _id(terminated: Object | None) -> str:
    """The id of a container that has ended; "" for none."""
    return str((terminated or {}).get("containerID", "")).partition("://")[2]


class _Source:
    """The lines of a log, from a file that may grow and begin anew."""

    def __init__(self, path: Path, writing: ContainerLog | None) -> None:
        """`writing`: the log while its container runs, to wait for more. Raises FileNotFoundError."""
        self._path = path
        self._writing = writing
        self._file = path.open("rb", buffering=0)
        self._rest = b""

    def close(self) -> None:
        self._file.close()

    def skip_to_tail(self, lines: int) -> None:
        self._file.seek(tail_start(self._file.fileno(), lines))

    async def read(self, request: web.BaseRequest) -> list[bytes] | None:
        """Some lines, or none where the client should be looked for; None at the end."""
        ended = self._writing is None or self._writing.closed
        data = self._file.read(CHUNK)
        if data:
            *lines, self._rest = (self._rest + data).split(b"\n")
            return lines
        if os.fstat(self._file.fileno()).st_nlink == 0 and self._path.exists():  # it has begun anew
            self._file.close()
            self._file = self._path.open("rb", buffering=0)
            return []
        if ended:
            return None
        assert self._writing is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._writing.changed(), GONE_SECONDS)
        return None if request.transport is None or request.transport.is_closing() else []


class _Part:
    """Picks what is wanted, and counts it."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._left = options.limit
        self._at_start = True  # of a line

    @property
    def complete(self) -> bool:
        """Whether no more may be sent."""
        return self._left == 0

    def of(self, lines: list[bytes]) -> bytes:
        """What the client gets for lines of the file."""
        parts = []
        for line in map(parse, lines):
            if line.time < self._options.since:
                continue
            if self._options.timestamps and self._at_start:
                parts += [line.time, b" "]
            parts.append(line.text)
            self._at_start = line.text.endswith(b"\n")
        data = b"".join(parts)
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        return data
