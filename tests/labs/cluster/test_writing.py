"""What the API does with what clients send, without a network: words, codes, and what is stored in the end."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from labs.cluster import garbage
from labs.cluster.admission import NoServiceAccount, admit
from labs.cluster.api import protobuf
from labs.cluster.api.bodies import Options
from labs.cluster.api.paths import Target
from labs.cluster.api.status import ApiError
from labs.cluster.api.tables import table
from labs.cluster.api.writing import Writer, read_delete_options
from labs.cluster.deletion import DeleteOptions
from labs.cluster.options import AddressPlan
from labs.cluster.resources import (
    CONFIGMAPS,
    DAEMONSETS,
    DEPLOYMENTS,
    EVENTS,
    EVENTS_V1,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    SECRETS,
    SERVICEACCOUNTS,
    SERVICES,
    Resource,
)
from labs.cluster.store import Store
from tests.labs.cluster.stores import store_with

PLAN = AddressPlan((4,))
JSON = "application/json"


@pytest.fixture
def store() -> Store:
    store = store_with("default", "shop")
    store.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {}, "status": {}})
    return store


@pytest.fixture
def writer(store: Store) -> Writer:
    return Writer(store, PLAN)


def config(**content: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, **content}


def pod(**spec: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "a", "image": "client"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def create(writer: Writer, item: Any, resource: Resource = CONFIGMAPS, options: Options | None = None) -> Any:
    data = item if isinstance(item, bytes) else json.dumps(item).encode()
    namespace = "shop" if resource.namespaced else ""
    return writer.create(Target(resource, namespace), data, JSON, options or Options())


def refusal(call: Any) -> tuple[int, str, str]:
    with pytest.raises(ApiError) as caught:
        call()
    body = caught.value.body
    return body["code"], body["reason"], body["message"]


class TestBodies:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "unexpected end of JSON input (<empty>)"),
            (b"{", "unexpected end of JSON input ({)"),
            (b"xyz", "invalid character 'x' looking for beginning of value (78797a)"),
            (b"[]", "cannot unmarshal array"),
            (b"\xff\xfe\x00", "looking for beginning of value"),
            (b'{"a": NaN}', "invalid character 'N'"),
            (b"[" * 100_000, "exceeded max depth"),
        ],
    )
    def test_rubbish(self, writer: Writer, data: bytes, words: str) -> None:
        code, reason, message = refusal(lambda: create(writer, data))
        assert (code, reason) == (400, "BadRequest")
        assert message.startswith("the object provided is unrecognized (must be of type ConfigMap): ")
        assert words in message

    @pytest.mark.parametrize(
        ("item", "words"),
        [
            (
                {**config(), "apiVersion": "v2"},
                "the API version in the data (v2) does not match the expected API version (v1)",
            ),
            (
                {**config(), "kind": "Secret"},
                'Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): '
                "unknown conversion",
            ),
            (
                {**config(), "metadata": {"name": "c", "namespace": "other"}},
                "the namespace of the provided object does not match the namespace sent on the request",
            ),
            (
                config(data={"a": 1}),
                'ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go '
                "struct field ConfigMap.data of type string",
            ),
            (
                {**config(), "metadata": {"creationTimestamp": "yesterday"}},
                'ConfigMap in version "v1" cannot be handled as a ConfigMap: parsing time "yesterday" as '
                '"2006-01-02T15:04:05Z07:00": cannot parse it',
            ),
            (
                {**config(), "metadata": "x"},
                'ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal string into Go '
                "struct field ConfigMap.metadata of type v1.ObjectMeta",
            ),
        ],
    )
    def test_the_wrong_kind_of_object(self, writer: Writer, item: dict[str, Any], words: str) -> None:
        if isinstance(item["metadata"], str):
            with pytest.raises((ApiError, TypeError, AttributeError)) as caught:
                create(writer, item)
            assert isinstance(caught.value, ApiError)
            assert caught.value.body["message"] == words
        else:
            assert refusal(lambda: create(writer, item)) == (400, "BadRequest", words)

    def test_unknown_fields(self, writer: Writer, store: Store) -> None:
        item = pod(nodename="x", containers=[{"name": "a", "image": "client", "imge": "y"}])
        strict = Options(validation="Strict")
        assert refusal(lambda: create(writer, item, PODS, strict))[2] == (
            'Pod in version "v1" cannot be handled as a Pod: strict decoding error: '
            'unknown field "spec.containers[0].imge", unknown field "spec.nodename"'
        )
        lenient = Options()
        create(writer, item, PODS, lenient)
        assert lenient.warnings == ['unknown field "spec.containers[0].imge"', 'unknown field "spec.nodename"']
        assert "nodename" not in store.get(PODS, "shop", "p")["spec"]

    def test_nulls_are_as_good_as_nothing(self, writer: Writer) -> None:
        item = pod(nodeSelector=None, volumes=None)
        item["metadata"]["labels"] = None
        stored = create(writer, item, PODS)
        assert "labels" not in stored["metadata"] and "nodeSelector" not in stored["spec"]

    def test_half_a_pair_of_surrogates(self, writer: Writer) -> None:
        body = b'{"metadata": {"name": "c"}, "data": {"a": "x\\ud800y", "b": "\\ud83d\\ude00"}}'
        assert create(writer, body)["data"] == {"a": "x\ufffdy", "b": "\U0001f600"}
        secret = b'{"metadata": {"name": "s"}, "stringData": {"a": "\\uD800"}}'
        assert create(writer, secret, SECRETS)["data"] == {"a": "77+9"}

    def test_an_unknown_form(self, writer: Writer) -> None:
        code, reason, message = refusal(
            lambda: writer.create(Target(CONFIGMAPS, "shop"), b"", "application/cbor", Options())
        )
        assert (code, reason) == (415, "UnsupportedMediaType")
        assert "application/json" in message

    def test_protobuf(self, writer: Writer) -> None:
        """A ConfigMap in the form in which kubectl 1.32 sends it: empty texts are there, the rest is left out."""
        meta = b"\x0a\x02v1\x12\x09ConfigMap"
        raw = b"\x0a\x05\x0a\x01c\x12\x00\x12\x06\x0a\x01a\x12\x01b"
        body = protobuf.MAGIC + b"\x0a" + bytes([len(meta)]) + meta + b"\x12" + bytes([len(raw)]) + raw + b"\x1a\x00"
        stored = writer.create(Target(CONFIGMAPS, "shop"), body, protobuf.MEDIA_TYPE, Options())
        assert (stored["metadata"]["name"], stored["data"]) == ("c", {"a": "b"})

    def test_protobuf_of_nested_things(self) -> None:
        """A pod with a volume, a map, a time that is empty and a pointer to false, as client-go writes it."""

        def field(number: int, value: bytes | int) -> bytes:
            if isinstance(value, int):
                return bytes([number << 3, value])
            return (
                bytes([number << 3 & 0x7F | 0x82 if number > 15 else number << 3 | 2])
                + (bytes([number >> 4]) if number > 15 else b"")
                + bytes([len(value)])
                + value
            )

        host_path = field(1, b"/") + field(2, b"")
        volume = field(1, b"host") + field(2, field(1, host_path))
        mount = field(1, b"host") + field(2, 0) + field(3, b"/host") + field(4, b"")
        quantity = field(1, b"cpu") + field(2, field(1, b"100m"))
        container = field(1, b"x") + field(2, b"client") + field(8, field(1, quantity)) + field(9, mount)
        spec = field(1, volume) + field(2, container) + field(11, 1)
        metadata = field(1, b"p") + field(8, b"") + field(11, field(1, b"a") + field(2, b"b"))
        meta = field(1, b"v1") + field(2, b"Pod")
        raw = field(1, metadata) + field(2, spec) + field(3, b"")
        assert protobuf.decode(protobuf.MAGIC + field(1, meta) + field(2, raw)) == {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {
                "volumes": [{"name": "host", "hostPath": {"path": "/", "type": ""}}],
                "containers": [
                    {
                        "name": "x",
                        "image": "client",
                        "resources": {"limits": {"cpu": "100m"}},
                        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                    }
                ],
                "hostNetwork": True,
            },
        }

    @pytest.mark.parametrize(
        "body", [b"", b"k8s\x00\xff", b"k8s\x00\x0a\xff\xff\xff\xff\x0f", b"k8s\x00" + b"\x80" * 20]
    )
    def test_broken_protobuf(self, writer: Writer, body: bytes) -> None:
        assert (
            refusal(lambda: writer.create(Target(CONFIGMAPS, "shop"), body, protobuf.MEDIA_TYPE, Options()))[0] == 400
        )


class TestCreate:
    def test_names_are_generated(self, writer: Writer) -> None:
        names = {create(writer, config(metadata={"generateName": "c-"}))["metadata"]["name"] for _ in range(20)}
        assert len(names) == 20 and all(len(name) == 7 and name.startswith("c-") for name in names)

    def test_a_name_there_is_and_a_namespace_there_is_not(self, writer: Writer) -> None:
        create(writer, config())
        assert refusal(lambda: create(writer, config())) == (
            409,
            "AlreadyExists",
            'configmaps "c" already exists',
        )
        lost = Target(CONFIGMAPS, "nowhere")
        data = json.dumps(config()).encode()
        assert refusal(lambda: writer.create(lost, data, JSON, Options())) == (
            404,
            "NotFound",
            'namespaces "nowhere" not found',
        )

    def test_a_dry_run_stores_nothing(self, writer: Writer, store: Store) -> None:
        version = store.version
        assert create(writer, config(), options=Options(dry_run=True))["metadata"]["uid"]
        assert (store.version, store.find(CONFIGMAPS, "shop", "c")) == (version, None)

    def test_what_the_client_says_of_the_servers_metadata_does_not_count(self, writer: Writer) -> None:
        said = {"name": "c", "uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z", "resourceVersion": "7"}
        metadata = create(writer, config(metadata=said))["metadata"]
        assert (
            metadata["uid"] != "mine" and metadata["creationTimestamp"] > "2001" and metadata["resourceVersion"] != "7"
        )

    def test_all_mistakes_are_told_at_once(self, writer: Writer) -> None:
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A"}, "spec": {"containers": [{"name": "x"}]}}
        with pytest.raises(ApiError) as caught:
            create(writer, item, PODS)
        causes = caught.value.body["details"]["causes"]
        assert [(cause["reason"], cause["field"]) for cause in causes] == [
            ("FieldValueInvalid", "metadata.name"),
            ("FieldValueRequired", "spec.containers[0].image"),
        ]
        assert caught.value.body["message"].startswith('Pod "A" is invalid: [metadata.name: Invalid value: "A": ')


ROLLING = "spec.strategy.rollingUpdate"
UNAVAILABLE = f"{ROLLING}.maxUnavailable: Invalid value: "


@pytest.mark.parametrize(
    ("kind", "strategy", "words"),
    [
        (
            "Deployment",
            {"maxSurge": "x"},
            f"{ROLLING}.maxSurge: Invalid value: intstr.IntOrString{{Type:1, IntVal:0, "
            "StrVal:\"x\"}: a valid percent string must be a numeric string followed by an ending '%'",
        ),
        ("Deployment", {"maxSurge": -1}, f"{ROLLING}.maxSurge: Invalid value: -1: must be greater than or equal to 0"),
        (
            "Deployment",
            {"maxSurge": 0, "maxUnavailable": 0},
            f'{UNAVAILABLE}intstr.IntOrString{{Type:0, IntVal:0, StrVal:""}}: may not be 0 when `maxSurge` is 0',
        ),
        ("Deployment", {"maxUnavailable": "101%"}, "must not be greater than 100%"),
        ("DaemonSet", {"maxUnavailable": "x"}, "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "),
        ("DaemonSet", {"maxUnavailable": 1, "maxSurge": 1}, "may not be set when maxUnavailable is non-zero"),
        ("DaemonSet", {"maxUnavailable": 0}, "maxUnavailable: Required value: cannot be 0 when maxSurge is 0"),
    ],
)
def test_how_many_pods_may_be_away(writer: Writer, kind: str, strategy: dict[str, Any], words: str) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod()["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    spec["strategy" if kind == "Deployment" else "updateStrategy"] = {"rollingUpdate": strategy}
    item = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "d"}, "spec": spec}
    resource = DEPLOYMENTS if kind == "Deployment" else DAEMONSETS
    code, reason, message = refusal(lambda: create(writer, item, resource))
    assert (code, reason) == (422, "Invalid")
    assert words in message


def test_a_deadline_is_later_than_what_is_waited_for(writer: Writer) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod()["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template, "minReadySeconds": 600}
    item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    words = "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"
    assert refusal(lambda: create(writer, item, DEPLOYMENTS))[2].endswith(words)


def test_what_is_being_deleted_is_still_there(store: Store, writer: Writer) -> None:
    held = config()
    held["metadata"] = {"name": "c", "finalizers": ["example.org/hold"]}
    create(writer, held)
    assert refusal(lambda: create(writer, config())) == (409, "AlreadyExists", 'configmaps "c" already exists')
    writer.delete(Target(CONFIGMAPS, "shop", "c"), read_delete_options(b"", JSON, lambda _: ""))
    words = 'object is being deleted: configmaps "c" already exists'
    assert refusal(lambda: create(writer, config())) == (409, "AlreadyExists", words)


class TestServiceAccounts:
    WORDS = 'pods "p" is forbidden: error looking up service account shop/robot: serviceaccount "robot" not found'

    def test_a_pod_needs_its_account(self, store: Store, writer: Writer) -> None:
        robot = pod(serviceAccountName="robot")
        assert refusal(lambda: create(writer, robot, PODS)) == (403, "Forbidden", self.WORDS)
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}
        create(writer, account, SERVICEACCOUNTS)
        assert create(writer, robot, PODS)["spec"]["serviceAccountName"] == "robot"

    def test_a_mirror_pod_needs_none(self, store: Store) -> None:
        store.delete(SERVICEACCOUNTS, "shop", "default")
        mirror = pod()
        mirror["metadata"] |= {"namespace": "shop", "annotations": {"kubernetes.io/config.mirror": "x"}}
        admit(store, PLAN, mirror)
        with pytest.raises(NoServiceAccount):
            admit(store, PLAN, {**pod(), "metadata": {"name": "q", "namespace": "shop"}})


class TestEvents:
    """An Event is written under two names, as kube-proxy and kubelets do through events.k8s.io."""

    EVENT: ClassVar[dict[str, Any]] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "node1.1", "namespace": "shop"},
        "eventTime": "2024-01-01T00:00:00.000000Z",
        "reportingController": "kube-proxy",
        "reportingInstance": "kube-proxy-node1",
        "action": "StartKubeProxy",
        "reason": "Starting",
        "regarding": {"kind": "Node", "name": "node1", "uid": "node1"},
        "type": "Normal",
    }
    WHERE = Target(EVENTS_V1, "shop", "node1.1")

    def test_as_kube_proxy_writes_it(self, writer: Writer, store: Store) -> None:
        create(writer, {**self.EVENT, "note": "hello"}, EVENTS_V1)
        stored = store.get(EVENTS, "shop", "node1.1")
        assert (stored["apiVersion"], stored["message"], stored["reportingComponent"]) == ("v1", "hello", "kube-proxy")
        assert stored["involvedObject"]["name"] == "node1"
        assert table(EVENTS, [stored], "", "None")["rows"][0]["cells"][1:6] == [
            *("Normal", "Starting", "node/node1", "", "kube-proxy, kube-proxy-node1")
        ]
        patch = {"series": {"count": 3, "lastObservedTime": "2024-01-01T01:00:00.000000Z"}}
        kind = "application/strategic-merge-patch+json"
        writer.patch(self.WHERE, json.dumps(patch).encode(), kind, Options())
        stored = store.get(EVENTS, "shop", "node1.1")
        assert (stored["series"], stored["message"]) == (patch["series"], "hello")
        assert "(x3 over " in table(EVENTS, [stored], "", "None")["rows"][0]["cells"][0]
        changed = {**self.EVENT, "note": "bye"}
        assert writer.update(self.WHERE, json.dumps(changed).encode(), JSON, Options())[0]["message"] == "bye"
        writer.delete(self.WHERE, DeleteOptions())
        assert store.find(EVENTS, "shop", "node1.1") is None

    def test_in_protobuf_as_kube_proxy_sends_it(self) -> None:
        def part(number: int, data: bytes) -> bytes:
            return bytes([number << 3 | 2, len(data)]) + data

        when = part(2, b"\x08\x80\xd0\xfd\xc1\x05")  # eventTime: seconds since 1970
        body = part(1, part(1, b"a")) + when + part(4, b"kube-proxy") + part(8, part(1, b"Node")) + part(10, b"hi")
        kind = part(1, b"events.k8s.io/v1") + part(2, b"Event")
        assert protobuf.decode(protobuf.MAGIC + part(1, kind) + part(2, body)) == {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "a"},
            "eventTime": "2016-12-01T00:00:00Z",
            "reportingController": "kube-proxy",
            "regarding": {"kind": "Node"},
            "note": "hi",
        }
        with pytest.raises(ValueError, match="too far away"):
            protobuf.decode(protobuf.MAGIC + part(1, kind) + part(2, part(2, b"\x08" + b"\xff" * 8 + b"\x0f")))

    def test_what_it_must_say(self, writer: Writer) -> None:
        event = {key: value for key, value in self.EVENT.items() if key not in ("eventTime", "type")}
        assert refusal(lambda: create(writer, event, EVENTS_V1)) == (
            422,
            "Invalid",
            'Event.events.k8s.io "node1.1" is invalid: [eventTime: Required value, '
            'type: Invalid value: "": has invalid value: ]',
        )


class TestUpdate:
    def put(self, writer: Writer, item: dict[str, Any], resource: Resource = CONFIGMAPS, sub: str = "") -> Any:
        target = Target(resource, "shop", item["metadata"]["name"], sub)
        return writer.update(target, json.dumps(item).encode(), JSON, Options())[0]

    def test_an_old_version_is_a_conflict(self, writer: Writer) -> None:
        first = create(writer, config(data={"a": "1"}))
        self.put(writer, {**first, "data": {"a": "2"}})
        assert refusal(lambda: self.put(writer, {**first, "data": {"a": "3"}})) == (
            409,
            "Conflict",
            'Operation cannot be fulfilled on configmaps "c": the object has been modified; please apply your changes '
            "to the latest version and try again",
        )
        without = {**first, "metadata": {"name": "c"}, "data": {"a": "4"}}
        assert self.put(writer, without)["data"] == {"a": "4"}

    def test_another_uid_is_a_conflict(self, writer: Writer) -> None:
        first = create(writer, config())
        other = {**first, "metadata": {**first["metadata"], "uid": "other"}}
        code, reason, message = refusal(lambda: self.put(writer, other))
        assert (code, reason) == (409, "Conflict")
        assert "Precondition failed: UID in precondition: other, UID in object meta: " in message

    def test_the_name_on_the_url(self, writer: Writer) -> None:
        create(writer, config())
        data = json.dumps(config(metadata={"name": "d"})).encode()
        assert refusal(lambda: writer.update(Target(CONFIGMAPS, "shop", "c"), data, JSON, Options()))[2] == (
            "the name of the object (d) does not match the name on the URL (c)"
        )

    def test_status_and_the_rest_are_written_apart(self, writer: Writer) -> None:
        stored = create(writer, pod(), PODS)
        changed = {**stored, "metadata": {**stored["metadata"], "labels": {"a": "b"}}, "status": {"phase": "Running"}}
        updated = self.put(writer, changed, PODS)
        assert (updated["metadata"]["labels"], updated["status"]["phase"]) == ({"a": "b"}, "Pending")
        again = {**updated, "metadata": {**updated["metadata"], "labels": {}}, "status": {"phase": "Running"}}
        after = self.put(writer, again, PODS, "status")
        assert (after["metadata"]["labels"], after["status"]["phase"]) == ({"a": "b"}, "Running")

    def test_a_pods_spec_is_fixed(self, writer: Writer) -> None:
        stored = create(writer, pod(), PODS)
        image = {**stored["spec"]["containers"][0], "image": "nginx"}
        self.put(writer, {**stored, "spec": {**stored["spec"], "containers": [image]}}, PODS)
        stored = writer._store.get(PODS, "shop", "p")
        code, _, message = refusal(
            lambda: self.put(writer, {**stored, "spec": {**stored["spec"], "hostNetwork": True}}, PODS)
        )
        assert code == 422
        assert message.startswith('Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than')

    def test_a_service_keeps_its_address_and_loses_its_node_port_with_its_type(self, writer: Writer) -> None:
        spec = {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}
        item = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}
        stored = create(writer, item, SERVICES)
        again = self.put(writer, item, SERVICES)
        for field in ("clusterIP", "ports"):
            assert again["spec"][field] == stored["spec"][field]
        plain = {**again, "spec": {**again["spec"], "type": "ClusterIP"}}
        spec = self.put(writer, plain, SERVICES)["spec"]
        assert ("nodePort" in spec["ports"][0], "externalTrafficPolicy" in spec) == (False, False)


class TestDelete:
    def options(self, **body: Any) -> Any:
        return read_delete_options(json.dumps(body).encode() if body else b"", JSON, lambda _: "")

    def test_at_once_or_with_grace(self, writer: Writer, store: Store) -> None:
        create(writer, pod(), PODS)
        target = Target(PODS, "shop", "p")
        assert writer.delete(target, self.options())["status"] == "Success", "it ran nowhere"
        create(writer, pod(nodeName="node1"), PODS)
        last = writer.delete(target, self.options(gracePeriodSeconds=7))
        assert last["metadata"]["deletionGracePeriodSeconds"] == 7
        later = writer.delete(target, self.options(gracePeriodSeconds=60))
        assert later["metadata"]["deletionTimestamp"] == last["metadata"]["deletionTimestamp"], "it can only be less"
        writer.delete(target, self.options(gracePeriodSeconds=0))
        assert store.find(PODS, "shop", "p") is None

    def test_preconditions(self, writer: Writer) -> None:
        create(writer, config())
        wrong = self.options(preconditions={"uid": "x"})
        assert refusal(lambda: writer.delete(Target(CONFIGMAPS, "shop", "c"), wrong))[0] == 409

    def test_finalizers_hold_an_object_until_they_are_gone(self, writer: Writer, store: Store) -> None:
        create(writer, config(metadata={"name": "c", "finalizers": ["example.org/x"]}))
        target = Target(CONFIGMAPS, "shop", "c")
        assert "deletionTimestamp" in writer.delete(target, self.options())["metadata"]
        patch = json.dumps({"metadata": {"finalizers": None}}).encode()
        writer.patch(target, patch, "application/merge-patch+json", Options())
        assert store.find(CONFIGMAPS, "shop", "c") is None

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'{"gracePeriodSeconds":"x"}',
            b'{"propagationPolicy":"x"}',
            b'{"dryRun":["x"]}',
            b'{"dryRun":1}',
        ],
    )
    def test_options_that_make_no_sense(self, body: bytes) -> None:
        assert refusal(lambda: read_delete_options(body, JSON, lambda _: ""))[0] in (400, 422)

    def owner(self, writer: Writer, store: Store) -> None:
        """A Deployment that owns a ReplicaSet."""
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "client"}]}}
        spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
        item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
        uid = create(writer, item, DEPLOYMENTS)["metadata"]["uid"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": uid, "blockOwnerDeletion": True}
        metadata = {"name": "r", "ownerReferences": [owner]}
        create(writer, {**item, "kind": "ReplicaSet", "metadata": metadata}, REPLICASETS)

    @pytest.mark.parametrize(("policy", "left"), [("Background", 0), ("Foreground", 0), ("Orphan", 1)])
    def test_what_it_owns(self, writer: Writer, store: Store, policy: str, left: int) -> None:
        self.owner(writer, store)
        answer = writer.delete(Target(DEPLOYMENTS, "shop", "d"), self.options(propagationPolicy=policy))
        assert (answer["kind"] == "Status") is (policy == "Background"), "who waits for others is still there"
        for _ in range(3):
            garbage.reconciler(store)()
        assert (len(store.list(DEPLOYMENTS)), len(store.list(REPLICASETS))) == (0, left)
        assert all("ownerReferences" not in item["metadata"] for item in store.list(REPLICASETS))

    def test_a_namespace_takes_everything_with_it(self, writer: Writer, store: Store) -> None:
        create(writer, config())
        self.owner(writer, store)
        writer.delete(Target(NAMESPACES, "", "shop"), self.options())
        assert store.get(NAMESPACES, "", "shop")["status"] == {"phase": "Terminating"}
        code, reason, message = refusal(lambda: create(writer, config(metadata={"name": "late"})))
        assert (code, reason, message) == (
            403,
            "Forbidden",
            'configmaps "late" is forbidden: unable to create new content in namespace shop because it is being '
            "terminated",
        )
        for _ in range(3):
            garbage.reconciler(store)()
        assert [item["metadata"]["name"] for item in store.list(NAMESPACES)] == ["default"]
        assert store.list(CONFIGMAPS, "shop") == store.list(REPLICASETS) == []
