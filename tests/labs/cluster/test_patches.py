"""Patches of every type, against objects of the kinds that are served: pure, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster.api import apply, strategic
from labs.cluster.api.patches import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, patched
from labs.cluster.api.status import ApiError
from labs.cluster.mergepatch import merge
from labs.cluster.resources import DEPLOYMENTS

POD = "core_v1.Pod"


def pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}


def containers(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "image": "x"} for name in names]


def names(item: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in item["spec"]["containers"]]


class TestStrategic:
    def test_lists_are_merged_by_their_key(self) -> None:
        patch = {"spec": {"containers": [{"name": "b", "image": "y"}, {"name": "c", "image": "z"}]}}
        result = strategic.apply(pod(containers=containers("a", "b")), patch, POD)
        images = {entry["name"]: entry["image"] for entry in result["spec"]["containers"]}
        assert images == {"a": "x", "b": "y", "c": "z"}

    def test_a_new_entry_comes_before_what_the_patch_does_not_know(self) -> None:
        """As the documentation shows it (tasks/manage-kubernetes-objects/update-api-object-kubectl-patch)."""
        patch = {"spec": {"containers": [{"name": "second", "image": "redis"}]}}
        assert names(strategic.apply(pod(containers=containers("first")), patch, POD)) == ["second", "first"]

    def test_set_element_order(self) -> None:
        order = [{"name": "c"}, {"name": "a"}]
        patch = {"spec": {"$setElementOrder/containers": order, "containers": [{"name": "c", "image": "z"}]}}
        assert names(strategic.apply(pod(containers=containers("a", "b")), patch, POD)) == ["c", "a", "b"]

    def test_an_order_alone_sorts(self) -> None:
        patch = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
        assert names(strategic.apply(pod(containers=containers("a", "b")), patch, POD)) == ["b", "a"]

    def test_delete_and_replace(self) -> None:
        item = pod(containers=containers("a", "b"))
        gone = {"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}
        assert names(strategic.apply(item, gone, POD)) == ["b"]
        other = {"spec": {"containers": [{"name": "c", "image": "z"}, {"$patch": "replace"}]}}
        assert names(strategic.apply(item, other, POD)) == ["c"]
        whole = {"spec": {"$patch": "replace", "containers": containers("d")}}
        assert strategic.apply(pod(containers=containers("a"), nodeName="n"), whole, POD)["spec"] == {
            "containers": containers("d")
        }

    def test_lists_without_a_key_are_replaced(self) -> None:
        item = pod(containers=[], tolerations=[{"key": "a"}])
        patch = {"spec": {"tolerations": [{"key": "b"}]}}
        assert strategic.apply(item, patch, POD)["spec"]["tolerations"] == [{"key": "b"}]

    def test_sets_of_plain_values(self) -> None:
        item = {"metadata": {"name": "a", "finalizers": ["x", "y"]}}
        added = strategic.apply(item, {"metadata": {"finalizers": ["z"]}}, POD)
        assert sorted(added["metadata"]["finalizers"]) == ["x", "y", "z"]
        removed = strategic.apply(item, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}, POD)
        assert removed["metadata"]["finalizers"] == ["y"]

    def test_retain_keys(self) -> None:
        volume = {"name": "v", "emptyDir": {}}
        patch = {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}
        result = strategic.apply(pod(volumes=[volume]), patch, POD)
        assert result["spec"]["volumes"] == [{"name": "v", "configMap": {"name": "c"}}]

    def test_null_deletes(self) -> None:
        item = {"metadata": {"labels": {"a": "1", "b": "2"}}}
        assert strategic.apply(item, {"metadata": {"labels": {"a": None}}}, POD)["metadata"]["labels"] == {"b": "2"}

    def test_ports_of_a_service_are_told_apart_by_number(self) -> None:
        service = {"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}]}}
        patch = {"spec": {"ports": [{"port": 443, "targetPort": 8443}]}}
        ports = strategic.apply(service, patch, "core_v1.Service")["spec"]["ports"]
        assert {"port": 443, "name": "https", "targetPort": 8443} in ports and len(ports) == 2

    @pytest.mark.parametrize(
        "patch",
        [
            {"spec": {"containers": [{"image": "no name"}]}},
            {"spec": {"$patch": "nonsense"}},
            {"spec": {"containers": ["text"]}},
            {"spec": {"$setElementOrder/containers": "x"}},
            {"spec": {"$retainKeys": ["a"], "b": 1}},
        ],
    )
    def test_patches_that_make_no_sense(self, patch: dict[str, Any]) -> None:
        with pytest.raises((strategic.BadPatch, strategic.NoMergeKey)):
            strategic.apply(pod(containers=containers("a")), patch, POD)

    def test_the_original_stays_as_it_is(self) -> None:
        item = pod(containers=containers("a"))
        strategic.apply(item, {"spec": {"containers": [{"name": "a", "image": "y"}]}}, POD)
        assert item == pod(containers=containers("a"))


@pytest.mark.parametrize(
    ("original", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches(original: Any, patch: Any, expected: Any) -> None:
    """The cases of RFC 7386, appendix A."""
    assert merge(original, patch) == expected


def test_json_patches_and_what_is_refused() -> None:
    item = pod(nodeName="a")
    result = patched(item, [{"op": "replace", "path": "/spec/nodeName", "value": "b"}], JSON_PATCH, POD)
    assert (result["spec"], item["spec"]) == ({"nodeName": "b"}, {"nodeName": "a"})
    for operations in (
        [{"op": "remove", "path": "/spec/none"}],
        [{"op": "test", "path": "/spec/nodeName", "value": "z"}],
        [{"op": "nonsense", "path": "/spec"}],
        ["text"],
        [{"path": "/x"}],
    ):
        with pytest.raises(ApiError) as caught:
            patched(item, operations, JSON_PATCH, POD)
        assert caught.value.code in (400, 422)
    with pytest.raises(ApiError) as caught:
        patched(item, {}, STRATEGIC_PATCH, None)
    assert caught.value.code == 415
    assert patched(item, {"spec": None}, MERGE_PATCH, None).keys() == {"apiVersion", "kind", "metadata"}


class TestServerSideApply:
    def deployment(self, **spec: Any) -> dict[str, Any]:
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}

    def test_what_is_no_longer_wanted_goes(self) -> None:
        first = apply.apply(None, self.deployment(replicas=1, paused=True), DEPLOYMENTS, "me", force=False)
        second = apply.apply(first, self.deployment(replicas=2), DEPLOYMENTS, "me", force=False)
        assert second["spec"] == {"replicas": 2}

    def test_applying_twice_changes_nothing(self) -> None:
        template = {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}}
        wanted = self.deployment(replicas=1, template=template)
        first = apply.apply(None, wanted, DEPLOYMENTS, "me", force=False)
        assert apply.apply(first, wanted, DEPLOYMENTS, "me", force=False) == first

    def test_what_another_wants_too_stays(self) -> None:
        first = apply.apply(None, self.deployment(replicas=1), DEPLOYMENTS, "me", force=False)
        second = apply.apply(first, self.deployment(replicas=1), DEPLOYMENTS, "you", force=False)
        third = apply.apply(second, self.deployment(paused=True), DEPLOYMENTS, "me", force=False)
        assert third["spec"] == {"replicas": 1, "paused": True}

    def test_conflicts_and_force(self) -> None:
        first = apply.apply(None, self.deployment(replicas=1), DEPLOYMENTS, "me", force=False)
        with pytest.raises(ApiError) as caught:
            apply.apply(first, self.deployment(replicas=2), DEPLOYMENTS, "you", force=False)
        assert (caught.value.code, caught.value.body["message"]) == (
            409,
            'Apply failed with 1 conflict: conflict with "me": .spec.replicas',
        )
        second = apply.apply(first, self.deployment(replicas=2), DEPLOYMENTS, "you", force=True)
        assert second["spec"] == {"replicas": 2}
        assert [entry["manager"] for entry in second["metadata"]["managedFields"]] == ["you"]

    def test_entries_of_keyed_lists_come_and_go(self) -> None:
        def wanted(*names: str) -> dict[str, Any]:
            return self.deployment(template={"spec": {"containers": [{"name": name} for name in names]}})

        first = apply.apply(None, wanted("a", "b"), DEPLOYMENTS, "me", force=False)
        first["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"})
        second = apply.apply(first, wanted("b", "c"), DEPLOYMENTS, "me", force=False)
        found = [entry["name"] for entry in second["spec"]["template"]["spec"]["containers"]]
        assert sorted(found) == ["b", "c", "sidecar"]
