"""How a component that follows the API hears of changes, through lists and watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from labs.cluster.apiclient import Mirror
from labs.cluster.resources import NAMESPACES, SERVICES, Object, Resource, key_of


def item(name: str, version: int) -> Object:
    return {"metadata": {"namespace": "shop", "name": name, "resourceVersion": str(version)}}


class Follower:
    """Notes all that a mirror tells."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.mirror = Mirror((SERVICES, NAMESPACES), self.changed, "https://192.0.2.1", self.heard_of)

    def changed(self) -> None:
        self.heard.append("change")

    def heard_of(self, resource: Resource, key: tuple[str, str], now: Object | None) -> None:
        self.heard.append((resource.kind, key[1], now and now["metadata"]["resourceVersion"]))

    def told(self) -> list[Any]:
        """What was told since the last time."""
        heard, self.heard = self.heard, []
        return heard


def listed(*items: Object) -> dict[tuple[str, str], Object]:
    return {key_of(one): one for one in items}


def event(kind: str, one: Object) -> bytes:
    return json.dumps({"type": kind, "object": one}).encode()


def test_a_list_tells_what_is_new_and_what_is_gone() -> None:
    """A watch that broke may have missed anything, so that the next list has to tell of deletions too."""
    follower = Follower()
    follower.mirror._replace(SERVICES, listed(item("a", 1), item("b", 2)))
    assert follower.told() == [("Service", "a", "1"), ("Service", "b", "2")]
    follower.mirror._replace(SERVICES, listed(item("b", 5), item("c", 4)))
    assert follower.told() == [("Service", "a", None), ("Service", "b", "5"), ("Service", "c", "4")]
    assert sorted(name for _, name in follower.mirror.items[SERVICES]) == ["b", "c"]


def test_a_watch_tells_each_object_and_one_change_for_all_of_them() -> None:
    follower = Follower()
    follower.mirror._complete = {SERVICES, NAMESPACES}
    events = [event("ADDED", item("a", 1)), event("MODIFIED", item("a", 2)), event("DELETED", item("a", 3))]
    assert follower.mirror._apply(SERVICES, [*events, event("BOOKMARK", item("", 9))]) == "9"
    assert follower.told() == [("Service", "a", "1"), ("Service", "a", "2"), ("Service", "a", None), "change"]
    assert (follower.mirror.items[SERVICES], follower.mirror.version) == ({}, 9)


def test_managed_fields_are_not_kept() -> None:
    """Of a small Service they are half, and in a cluster of ten thousand each component has all of them."""
    follower = Follower()
    managed = item("a", 1)
    managed["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    follower.mirror._apply(SERVICES, [event("ADDED", managed)])
    assert follower.mirror.items[SERVICES] == listed(item("a", 1))


class Session:
    """Stands for an HTTP session: keeps what is asked with, and answers with an empty list."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    @contextlib.asynccontextmanager
    async def get(self, _path: str, headers: dict[str, str], **_: Any) -> AsyncIterator[Any]:
        self.tokens.append(headers["Authorization"])
        answer = {"items": [], "metadata": {"resourceVersion": "1"}}
        content = SimpleNamespace(iter_any=lambda: _nothing())
        yield SimpleNamespace(raise_for_status=lambda: None, read=lambda: _soon(json.dumps(answer)), content=content)


async def _soon(text: str) -> str:
    return text


async def _nothing() -> AsyncIterator[bytes]:
    for chunk in ():
        yield chunk


def test_each_request_has_the_token_of_that_moment(tmp_path: Path) -> None:
    """kubelet renews it long before it expires, and the API refuses it afterwards."""
    mirror, session = Mirror((SERVICES,), lambda: None, "https://192.0.2.1", account=tmp_path), Session()

    async def ask(token: str) -> None:
        (tmp_path / "token").write_text(token)
        await mirror._list(session, SERVICES)  # type: ignore[arg-type]
        await mirror._watch(session, SERVICES, "1")  # type: ignore[arg-type]

    asyncio.run(ask("first\n"))
    asyncio.run(ask("second"))
    assert session.tokens == ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]
