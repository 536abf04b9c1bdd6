"""How the components that run in pods (kube-proxy, kindnet, CoreDNS) follow the API: list, then watch, then list again.

Stands for client-go: in-cluster configuration from the service-account directory and the environment, the token read
again and again since kubelet renews it (transport/token_source.go), and the reflector (tools/cache/reflector.go). Left
out: everything that writes, paging, and clients for kinds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp

from labs.cluster.resources import Object, Resource, key_of

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS = 0.25  # the Service's rules may not be there yet: rather ask again than wait for the kernel's retries
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

log = logging.getLogger(__name__)


class Mirror:
    """A copy of some kinds of objects, kept up to date. `on_change` is called after each change once all kinds are
    complete; `on_object` before that for each object that was added, changed or (None) removed.

    `account`: a directory with the service account's token and ca.crt. `items` maps each resource to its objects by
    (namespace, name); `version` is the newest resourceVersion seen.
    """

    def __init__(
        self,
        resources: Iterable[Resource],
        on_change: Callable[[], None],
        server: str | None = None,
        on_object: Callable[[Resource, tuple[str, str], Object | None], None] = lambda *_: None,
        account: Path = SERVICE_ACCOUNT,
    ) -> None:
        self.items: dict[Resource, dict[tuple[str, str], Object]] = {resource: {} for resource in resources}
        self.version = 0
        self._on_change = on_change
        self._on_object = on_object
        self._account = account
        self._complete: set[Resource] = set()
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        self._server = server or f"https://[{host}]:{port}" if ":" in host else server or f"https://{host}:{port}"

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed."""
        return len(self._complete) == len(self.items)

    async def run(self) -> None:
        """Follow the API for ever, through its restarts and through watches that end."""
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with (
            aiohttp.ClientSession(self._server, timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            for resource in self.items:
                group.create_task(self._follow(session, resource))

    def _headers(self) -> dict[str, str]:
        """With the token as it is now: an old one is refused at some time."""
        token = (self._account / "token").read_text().strip()
        return {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def _follow(self, session: aiohttp.ClientSession, resource: Resource) -> None:
        failures = 0
        while True:
            try:
                version = await self._list(session, resource)
                failures = 0
                while True:
                    version = await self._watch(session, resource, version)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                delay = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                log.info("%s: %s; trying again in %s s", resource.plural, error, delay)
                await asyncio.sleep(delay)

    async def _list(self, session: aiohttp.ClientSession, resource: Resource) -> str:
        async with session.get(f"{resource.prefix}/{resource.plural}", headers=self._headers()) as response:
            response.raise_for_status()
            document = json.loads(await response.read())
        self._replace(resource, {key_of(item): _trimmed(item) for item in document["items"]})
        self._complete.add(resource)
        self._changed(document["metadata"]["resourceVersion"])
        return str(document["metadata"]["resourceVersion"])

    def _replace(self, resource: Resource, items: dict[tuple[str, str], Object]) -> None:
        before, self.items[resource] = self.items[resource], items
        for key in before.keys() - items.keys():
            self._on_object(resource, key, None)
        for key, item in items.items():
            self._on_object(resource, key, item)

    async def _watch(self, session: aiohttp.ClientSession, resource: Resource, version: str) -> str:
        """Apply changes until the stream ends; gives the version to go on from. Raises ValueError if that is gone."""
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        path = f"{resource.prefix}/{resource.plural}"
        async with session.get(path, params=query, headers=self._headers()) as response:
            response.raise_for_status()
            pending = b""
            async for chunk in response.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                if lines:
                    version = self._apply(resource, lines)
        return version

    def _apply(self, resource: Resource, lines: list[bytes]) -> str:
        items = self.items[resource]
        version = ""
        for line in lines:
            event = json.loads(line)
            item = event["object"]
            if event["type"] == "ERROR":
                raise ValueError(item.get("message", "the watch failed"))
            version = item["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                items.pop(key_of(item), None)
                self._on_object(resource, key_of(item), None)
            elif event["type"] != "BOOKMARK":
                items[key_of(item)] = _trimmed(item)
                self._on_object(resource, key_of(item), item)
        self._changed(version)
        return str(version)

    def _changed(self, version: str) -> None:
        self.version = max(self.version, int(version))
        if self.complete:
            self._on_change()


def _trimmed(item: Object) -> Object:
    """An object without what no component reads, and what is half of it (client-go's transform of that kind)."""
    item["metadata"].pop("managedFields", None)
    return item
