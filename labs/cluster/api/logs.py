"""The subresource log: what a container has written.

Stands for pkg/registry/core/pod/rest/log.go and the kubelet's /containerLogs. The files are those that the kubelet gave
to the containers; their lines carry no times, so `--timestamps` adds none, and `--since` only tells whether anything
was written since then. Left out: logs of containers before the last restart but one.

What belongs here: which file, which part of it. What does not: writing it (`labs.cluster.kubelet`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.kubelet import LOG_ROOT
from labs.cluster.resources import PODS, Object, key_of
from labs.cluster.store import Store

FOLLOW_SECONDS = 0.1
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What part of a log is wanted (PodLogOptions). None: no limit."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    tail: int | None = None
    limit: int | None = None
    since: float | None = None  # seconds since 1970

    @classmethod
    def of(cls, query: Mapping[str, str]) -> LogOptions:
        """Raises ApiError 400."""

        def flag(name: str) -> bool:
            return query.get(name, "").lower() in ("1", "true")

        def number(name: str) -> int | None:
            text = query.get(name)
            try:
                value = None if not text else int(text)
            except ValueError:
                raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None
            if value is not None and value < 0:
                raise status.bad_request(f"{name}: Invalid value: {value}: must be greater than or equal to 0")
            return value

        since = None
        if (seconds := number("sinceSeconds")) is not None:
            since = time.time() - seconds
        elif text := query.get("sinceTime"):
            try:
                since = datetime.datetime.fromisoformat(text).timestamp()
            except ValueError:
                raise status.bad_request(f'parsing time "{text}": cannot parse') from None
        return cls(
            query.get("container", ""),
            flag("follow"),
            flag("previous"),
            number("tailLines"),
            number("limitBytes"),
            since,
        )


async def send(store: Store, request: web.BaseRequest, pod: Object) -> web.StreamResponse:
    """Answer with a container's log, and go on with it if the client wants to follow."""
    options = LogOptions.of(request.query)
    path = _file(pod, options)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        try:
            log = path.open("rb")
        except FileNotFoundError:
            return response
        with log:
            if options.since is None or path.stat().st_mtime >= options.since:
                await _send_file(response, log.read(), options)
            else:
                log.seek(0, 2)
            while options.follow and _still_writes(store, pod, path):
                await asyncio.sleep(FOLLOW_SECONDS)
                while data := log.read(CHUNK):
                    await response.write(data)
            if options.follow and (data := log.read()):
                await response.write(data)
    return response


async def _send_file(response: web.StreamResponse, data: bytes, options: LogOptions) -> None:
    if options.tail is not None:
        lines = data.splitlines(keepends=True)
        data = b"".join(lines[-options.tail :] if options.tail else [])
    if options.limit is not None:
        data = data[: options.limit]
    if data:
        await response.write(data)


def _file(pod: Object, options: LogOptions) -> Path:
    """The log of the container that is meant. Raises ApiError 400."""
    name = pod["metadata"]["name"]
    known = [entry["name"] for entry in pod["spec"]["containers"]]
    container = options.container or (known[0] if len(known) == 1 else "")
    if not container:
        chosen = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
        if chosen not in known:
            words = f"a container name must be specified for pod {name}, choose one of: [{' '.join(known)}]"
            raise status.bad_request(words)
        container = str(chosen)
    known += [entry["name"] for entry in pod["spec"].get("initContainers") or ()]
    if container not in known:
        raise status.bad_request(f"container {container} is not valid for pod {name}")
    state = _state(pod, container)
    restarts = state["restartCount"] if state else 0
    if options.previous:
        if not restarts:
            raise status.bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
        return _path(pod, container, restarts - 1)
    waiting = (state or {"state": {"waiting": {}}})["state"].get("waiting")
    path = _path(pod, container, restarts)
    if waiting is not None and not path.exists():
        if restarts and _path(pod, container, restarts - 1).exists():
            return _path(pod, container, restarts - 1)
        reason = waiting.get("reason", "ContainerCreating")
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            reason = "trying and failing to pull image"
        raise status.bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
    return path


def _state(pod: Object, container: str) -> Object | None:
    """A container's status; None where there is none yet."""
    status = pod.get("status") or {}
    states = (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ()))
    return next((entry for entry in states if entry["name"] == container), None)


def _path(pod: Object, container: str, restarts: int) -> Path:
    namespace, name = key_of(pod)
    return LOG_ROOT / f"{namespace}_{name}_{pod['metadata']['uid']}" / container / f"{restarts}.log"


def _still_writes(store: Store, pod: Object, path: Path) -> bool:
    """Whether the container that writes this log may write more."""
    current = store.find(PODS, *key_of(pod))
    if current is None or current["metadata"]["uid"] != pod["metadata"]["uid"]:
        return False
    state = _state(current, path.parent.name)
    return state is not None and "terminated" not in state["state"] and path.stem == str(state["restartCount"])
