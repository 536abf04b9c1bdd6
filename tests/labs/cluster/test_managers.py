"""The entries of managedFields, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.api import apply, managers
from labs.cluster.api.fieldsets import changes, fields_of, leaves, tree_of
from labs.cluster.api.managers import ANCIENT, MOST_UPDATES, in_order, updated
from labs.cluster.api.shapes import Structural, typed
from labs.cluster.api.status import ApiError
from labs.cluster.resources import CONFIGMAPS, DEPLOYMENTS, PODS

Entries = list[dict[str, Any]]


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "uid": "1"}, "spec": spec}


def config(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def fields(entries: Entries) -> dict[str, Any]:
    return {entry["manager"]: entry["fieldsV1"] for entry in entries}


@pytest.mark.parametrize(
    ("old", "new", "added", "removed"),
    [
        ({"a": 1}, {"a": 1}, [], []),
        ({"spec": {"nodeName": "x"}}, {"spec": {"nodeName": "y"}}, [("f:spec", "f:nodeName")], []),
        ({"spec": {"nodeName": "x"}}, {"spec": {}}, [], [("f:spec", "f:nodeName")]),
        (  # a list that is one value
            {"spec": {"tolerations": [{"key": "a"}]}},
            {"spec": {"tolerations": [{"key": "b"}]}},
            [("f:spec", "f:tolerations")],
            [],
        ),
        (  # an object that is one value
            {"spec": {"nodeSelector": {"a": "b"}}},
            {"spec": {"nodeSelector": {"a": "c"}}},
            [("f:spec", "f:nodeSelector")],
            [],
        ),
        (  # entries of a keyed list
            {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b"}]}},
            {"spec": {"containers": [{"name": "a", "image": "y"}, {"name": "c"}]}},
            [
                ("f:spec", "f:containers", 'k:{"name":"a"}', "f:image"),
                ("f:spec", "f:containers", 'k:{"name":"c"}', "."),
                ("f:spec", "f:containers", 'k:{"name":"c"}', "f:name"),
            ],
            [
                ("f:spec", "f:containers", 'k:{"name":"b"}', "."),
                ("f:spec", "f:containers", 'k:{"name":"b"}', "f:name"),
            ],
        ),
        (  # a set
            {"metadata": {"finalizers": ["x", "y"]}},
            {"metadata": {"finalizers": ["y", "z"]}},
            [("f:metadata", "f:finalizers", 'v:"z"')],
            [("f:metadata", "f:finalizers", 'v:"x"')],
        ),
        (
            {},
            {"metadata": {"labels": {"a": "b"}}},
            [("f:metadata", "f:labels", "."), ("f:metadata", "f:labels", "f:a")],
            [],
        ),
    ],
)
def test_changes(old: Any, new: Any, added: Any, removed: Any) -> None:
    found = changes(old, new, typed("core_v1.Pod"))
    assert [sorted(paths) for paths in found] == [sorted(added), sorted(removed)]


def test_custom_kinds_say_their_shape() -> None:
    entry = {"type": "object", "properties": {"name": {"type": "string"}}}
    parts = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": entry}
    whole = {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}}}
    shape = Structural({"properties": {"parts": parts, "whole": whole}}, whole=True)
    item = {"parts": [{"name": "x"}], "whole": {"a": "b"}, "metadata": {"finalizers": ["f"]}}
    assert tree_of(set(fields_of(item, shape))) == {
        "f:metadata": {"f:finalizers": {'v:"f"': {}}},
        "f:parts": {'k:{"name":"x"}': {".": {}, "f:name": {}}},
        "f:whole": {},
    }


def test_trees_and_fields_are_the_same() -> None:
    tree = {"f:a": {".": {}, "f:b": {}}, "f:c": {}}
    assert tree_of(leaves(tree)) == tree


@pytest.mark.parametrize("rubbish", ["x", {"f:a": "x"}, {"x": {}, "k:x": {}, "k:[]": {}, "v:": {}, "f:a": {}}])
def test_a_tree_that_a_client_has_made_up(rubbish: Any) -> None:
    assert leaves(rubbish) <= {("f:a",)}


def test_a_field_is_whose_who_changed_it_last() -> None:
    first = updated([], {}, config(a="1", b="1"), CONFIGMAPS, "one")
    second = updated(first, config(a="1", b="1"), config(a="1", b="2"), CONFIGMAPS, "two")
    assert fields(second) == {"one": {"f:data": {".": {}, "f:a": {}}}, "two": {"f:data": {"f:b": {}}}}
    third = updated(second, config(a="1", b="2"), config(a="1"), CONFIGMAPS, "one")
    assert fields(third) == {"one": {"f:data": {".": {}, "f:a": {}}}}


def test_nothing_changes_nothing() -> None:
    entries = [{"manager": "one", "operation": "Update", "time": "then", "fieldsV1": {"f:data": {"f:a": {}}}}]
    old, new = config(a="1"), config(a="1")
    new["metadata"] |= {"resourceVersion": "5", "managedFields": entries}
    assert updated(entries, old, new, CONFIGMAPS, "two") is entries


def test_the_status_belongs_to_its_subresource() -> None:
    old, new = {**pod(), "status": {}}, {**pod(nodeName="x"), "status": {"phase": "Running"}}
    assert fields(updated([], old, new, PODS, "me")) == {"me": {"f:spec": {"f:nodeName": {}}}}
    (entry,) = updated([], old, {**old, "status": {"phase": "Running"}}, PODS, "me", "status")
    assert (entry["subresource"], entry["fieldsV1"]) == ("status", {"f:status": {"f:phase": {}}})


def test_the_oldest_updates_become_one() -> None:
    entries: Entries = []
    for number in range(MOST_UPDATES + 3):
        one = managers.entry_for(f"m{number:02}", "Update", "v1", {("f:data", f"f:{number}")})
        entries = in_order([*entries, {**one, "time": f"2026-01-01T00:00:{number:02}Z"}])
    assert len(entries) == MOST_UPDATES
    assert fields(entries)[ANCIENT] == {"f:data": {f"f:{number}": {} for number in range(4)}}


def test_applying_over_updates() -> None:
    current = config(a="1", b="1")
    current["metadata"]["managedFields"] = updated([], {}, current, CONFIGMAPS, "editor")
    with pytest.raises(ApiError) as caught:
        apply.apply(current, config(a="2", b="2"), CONFIGMAPS, "me", force=False)
    assert caught.value.body["message"] == (
        'Apply failed with 2 conflicts: conflicts with "editor" using v1:\n- .data.a\n- .data.b'
    )
    assert [cause["field"] for cause in caught.value.body["details"]["causes"]] == [".data.a", ".data.b"]
    same = apply.apply(current, config(a="1"), CONFIGMAPS, "me", force=False)
    assert same["data"] == {"a": "1", "b": "1"}
    # What the applier gives up stays, since the editor has it too.
    assert apply.apply(same, config(), CONFIGMAPS, "me", force=False)["data"] == {"a": "1", "b": "1"}


def test_a_deployment_without_entries_was_somebodys() -> None:
    current = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 1}}
    wanted = {**current, "spec": {"replicas": 2}}
    with pytest.raises(ApiError, match=r'conflict with "before-first-apply" using apps/v1: \.spec\.replicas'):
        apply.apply(current, wanted, DEPLOYMENTS, "me", force=False)
