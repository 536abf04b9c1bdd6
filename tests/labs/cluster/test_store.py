"""The state store: versions, watches, conflicts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labs.cluster import store as store_module
from labs.cluster.resources import DEPLOYMENTS, NODES, PODS, Object
from labs.cluster.store import AlreadyExists, Change, Conflict, Expired, NotFound, Store


def pod(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", **more.pop("metadata", {})}, "spec": {}, **more}


def drain(watch: store_module.Watch) -> list[Change]:
    async def collect() -> list[Change]:
        changes = []
        while watch.pending():
            changes.append(await watch.next())
        return changes

    return asyncio.run(collect())


class TestWrites:
    def test_each_write_has_a_version_of_its_own(self) -> None:
        store = Store()
        first, second = store.create(PODS, pod("a")), store.create(PODS, pod("b"))
        assert int(first["metadata"]["resourceVersion"]) < int(second["metadata"]["resourceVersion"]) == store.version

    def test_create_fills_in_what_the_server_knows(self) -> None:
        given = pod("a")
        stored = Store().create(PODS, given)
        assert "generation" not in stored["metadata"], "pods have none"
        assert len(stored["metadata"]["uid"]) == 36
        assert stored["metadata"]["creationTimestamp"].endswith("Z")
        assert "uid" not in given["metadata"], "what the caller holds is not touched"

    def test_a_name_is_taken_once(self) -> None:
        store = Store()
        store.create(PODS, pod("a"))
        with pytest.raises(AlreadyExists, match='pods "a" already exists'):
            store.create(PODS, pod("a"))

    def test_an_update_that_changes_nothing_is_no_write(self) -> None:
        store = Store()
        stored = store.create(PODS, pod("a"))
        version = store.version
        assert store.update(PODS, stored) == stored
        assert store.version == version

    def test_generation_counts_changes_of_the_spec_only(self) -> None:
        store = Store()
        stored = store.create(DEPLOYMENTS, pod("a"))
        stored = store.update_status(DEPLOYMENTS, "default", "a", {"replicas": 1})
        assert stored["metadata"]["generation"] == 1
        assert store.update(DEPLOYMENTS, {**stored, "spec": {"x": 1}})["metadata"]["generation"] == 2

    def test_a_dry_run_changes_nothing(self) -> None:
        store = Store()
        assert store.create(PODS, pod("a"), dry_run=True)["metadata"]["uid"]
        stored = store.create(PODS, pod("a"))
        version = store.version
        assert store.update(PODS, {**stored, "spec": {"x": 1}}, dry_run=True)["spec"] == {"x": 1}
        assert (store.version, store.get(PODS, "default", "a")) == (version, stored)

    def test_an_update_of_an_old_version_is_a_conflict(self) -> None:
        store = Store()
        old = store.create(PODS, pod("a"))
        store.update_status(PODS, "default", "a", {"phase": "Running"})
        with pytest.raises(Conflict, match="the object has been modified"):
            store.update(PODS, {**old, "status": {}})

    def test_identity_can_not_be_written(self) -> None:
        store = Store()
        stored = store.create(PODS, pod("a"))
        written = store.update(PODS, pod("a", metadata={"uid": "other"}, status={"x": 1}))
        assert written["metadata"]["uid"] == stored["metadata"]["uid"]

    def test_what_is_gone_is_not_found(self) -> None:
        store = Store()
        store.create(PODS, pod("a"))
        store.delete(PODS, "default", "a")
        for action in (store.get, store.delete):
            with pytest.raises(NotFound):
                action(PODS, "default", "a")
        assert store.find(PODS, "default", "a") is None

    def test_lists_are_sorted_and_of_one_namespace_or_all(self) -> None:
        store = Store()
        for namespace, name in (("b", "x"), ("a", "z"), ("a", "y")):
            store.create(PODS, pod(name, metadata={"namespace": namespace}))
        names = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in store.list(PODS)]
        assert names == [("a", "y"), ("a", "z"), ("b", "x")]
        assert [item["metadata"]["name"] for item in store.list(PODS, "b")] == ["x"]


class TestWatch:
    def test_a_watch_from_a_list_misses_nothing(self) -> None:
        store = Store()
        store.create(PODS, pod("a"))
        version = store.version
        store.create(PODS, pod("b"))
        watch = store.watch(PODS, version)
        store.delete(PODS, "default", "a")
        assert [(change.kind, change.item["metadata"]["name"]) for change in drain(watch)] == [
            ("ADDED", "b"),
            ("DELETED", "a"),
        ]

    def test_a_deletion_has_a_version_of_its_own(self) -> None:
        store = Store()
        created = store.create(PODS, pod("a"))
        deleted = store.delete(PODS, "default", "a")
        assert int(deleted["metadata"]["resourceVersion"]) == store.version
        assert int(created["metadata"]["resourceVersion"]) < store.version

    def test_other_kinds_are_not_told(self) -> None:
        store = Store()
        watch = store.watch(PODS)
        store.create(NODES, {"metadata": {"name": "node1"}})
        assert drain(watch) == []

    def test_what_is_forgotten_is_expired(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "HISTORY", 3)
        store = Store()
        for number in range(3):
            store.create(PODS, pod(f"p{number}"))
        start = store.version - 3
        assert len(drain(store.watch(PODS, start))) == 3
        store.create(PODS, pod("one-more"))
        with pytest.raises(Expired):
            store.watch(PODS, start)
        assert len(drain(store.watch(PODS, start + 1))) == 3

    def test_a_watcher_too_far_behind_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "WATCH_BACKLOG", 2)
        store = Store()
        watch = store.watch(PODS)
        for number in range(4):
            store.create(PODS, pod(f"p{number}"))

        async def read() -> None:
            for _ in range(2):
                await watch.next()
            with pytest.raises(Expired):
                await watch.next()

        asyncio.run(read())

    def test_a_closed_watch_is_told_nothing(self) -> None:
        store = Store()
        with store.watch(PODS) as watch:
            pass
        store.create(PODS, pod("a"))
        with pytest.raises(Expired):
            drain(watch)


def test_an_index_follows_what_is_written() -> None:
    def nodes(pod: Object) -> list[str]:
        return [pod["spec"]["nodeName"]]

    store = Store()
    for name, node in (("a", "x"), ("b", "x"), ("c", "y")):
        store.create(PODS, {"metadata": {"name": name, "namespace": "shop"}, "spec": {"nodeName": node}})
    index = store.index(PODS, nodes)
    assert index == {"x": {("shop", "a"), ("shop", "b")}, "y": {("shop", "c")}}
    store.update(PODS, {**store.get(PODS, "shop", "b"), "spec": {"nodeName": "y"}})
    store.delete(PODS, "shop", "a")
    store.create(PODS, {"metadata": {"name": "d", "namespace": "shop"}, "spec": {"nodeName": "z"}})
    assert index == {"y": {("shop", "b"), ("shop", "c")}, "z": {("shop", "d")}}
    assert store.index(PODS, nodes) is index
