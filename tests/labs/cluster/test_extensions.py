"""Custom kinds without a network: names that are taken, and what is said of definitions and of objects."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from labs.cluster import garbage, manifests
from labs.cluster.admission import Invalid, Terminating, admit, replace, replace_status
from labs.cluster.deletion import delete
from labs.cluster.extensions import columns, establishing, rules, structural, values
from labs.cluster.extensions.definitions import CLEANUP, condition
from labs.cluster.options import AddressPlan
from labs.cluster.resources import CONFIGMAPS, DEFINITIONS, NAMESPACES, SERVICES, Object, Resource, owner_reference
from labs.cluster.store import Expired, Store, Watch

PLAN = AddressPlan((4,))
WIDGETS: Object = yaml.safe_load((Path(__file__).parents[1] / "widgets.yaml").read_text())
WIDGET = Resource("test.k8snet.example", "", "widgets", "", "Widget", True)
NAME = "widgets.test.k8snet.example"


@pytest.fixture
def store() -> Store:
    store = Store()
    admit(store, PLAN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    return store


def define(store: Store, **names: Any) -> Object:
    """Bring a definition with other names into force, as far as it comes into force."""
    item = copy.deepcopy(WIDGETS)
    item["spec"]["names"].update(names)
    item["metadata"]["name"] = f"{item['spec']['names']['plural']}.test.k8snet.example"
    admit(store, PLAN, item)
    establishing.reconciler(store)()
    return store.get(DEFINITIONS, "", item["metadata"]["name"])


def widget(name: str = "w", version: str = "v1", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "shop"}
    return {
        "apiVersion": f"test.k8snet.example/{version}",
        "kind": "Widget",
        "metadata": metadata,
        "spec": {"size": "small", **spec},
    }


async def told(watch: Watch) -> list[tuple[str, str]]:
    """What a watch tells until it is cut off."""
    changes = []
    with contextlib.suppress(Expired):
        async with asyncio.timeout(10):
            async for change in watch:
                changes.append((change.kind, change.item["metadata"]["name"]))
    return changes


MISTAKES = {
    "name": (
        ("metadata", "name"),
        "x",
        'metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group',
    ),
    "group": (
        ("spec", "group"),
        "example",
        'spec.group: Invalid value: "example": should be a domain with at least one',
    ),
    "scope": (
        ("spec", "scope"),
        "All",
        'spec.scope: Unsupported value: "All": supported values: "Cluster", "Namespaced"',
    ),
    "kind": (
        ("spec", "names", "kind"),
        "Wid_get",
        "may have mixed case, but should otherwise match: a DNS-1035 label",
    ),
    "unknown fields": (
        ("spec", "preserveUnknownFields"),
        True,
        "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields",
    ),
    "storage": (
        ("spec", "versions", 1, "storage"),
        True,
        "must have exactly one version marked as storage version",
    ),
    "versions": (("spec", "versions", 1, "name"), "v1", "must contain unique version names"),
    "schema": (
        ("spec", "versions", 0, "schema"),
        {},
        "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
    ),
    "type": (
        ("spec", "versions", 0, "schema"),
        {"openAPIV3Schema": {"type": "object", "properties": {"spec": {}}}},
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for "
        "specified object fields",
    ),
    "properties": (
        ("spec", "versions", 0, "schema"),
        {"openAPIV3Schema": {"type": "object", "properties": "x"}},
        'openAPIV3Schema.properties: Invalid value: "x": must be of type dict',
    ),
    "rules": (
        ("spec", "versions", 0, "schema"),
        {"openAPIV3Schema": {"type": "object", "x-kubernetes-validations": ["x"]}},
        "must be a list of values of type dict",
    ),
    "pattern": (
        ("spec", "versions", 0, "schema"),
        {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}},
        'properties[a].pattern: Invalid value: "(": must be a valid regular expression',
    ),
    "column": (
        ("spec", "versions", 0, "additionalPrinterColumns", 0, "jsonPath"),
        "spec.size",
        'additionalPrinterColumns[0].JSONPath: Invalid value: "spec.size": must be a simple json path',
    ),
}


class TestDefinitions:
    def test_one_that_is_right_is_served(self, store: Store) -> None:
        definition = define(store)
        assert definition["spec"]["names"] == {
            **WIDGETS["spec"]["names"],
            "singular": "widget",
            "listKind": "WidgetList",
        }
        assert definition["status"]["acceptedNames"] == definition["spec"]["names"]
        assert definition["status"]["storedVersions"] == ["v1"]
        told = [(one["type"], one["status"], one["reason"]) for one in definition["status"]["conditions"]]
        assert told == [("NamesAccepted", "True", "NoConflicts"), ("Established", "True", "InitialNamesAccepted")]
        served = [
            store.kinds.by_path(f"/apis/test.k8snet.example/{version}", "widgets") for version in ("v1", "v1beta1")
        ]
        assert [(one.kind, one.has_status) for one in served if one] == [("Widget", True), ("Widget", False)]

    @pytest.mark.parametrize(
        ("names", "reason", "message"),
        [
            ({"kind": "Gadget", "shortNames": ["g"]}, "SingularConflict", '"widget" is already in use'),
            (
                {"kind": "Widget", "singular": "gadget", "shortNames": ["g"]},
                "ListKindConflict",
                '"WidgetList" is already',
            ),
            ({"kind": "Gadget", "shortNames": ["g", "wd"]}, "ShortNamesConflict", '"wd" is already in use'),
        ],
    )
    def test_names_that_are_taken(self, store: Store, names: Any, reason: str, message: str) -> None:
        define(store)
        if reason == "SingularConflict":
            names = {**names, "singular": "widget"}
        second = define(store, plural="gadgets", **names)
        accepted = condition(second, "NamesAccepted")
        assert (accepted["status"], accepted["reason"]) == ("False", reason)
        assert accepted["message"].startswith(message)
        assert condition(second, "Established")["reason"] == "NotAccepted"
        assert store.kinds.by_path("/apis/test.k8snet.example/v1", "gadgets") is None

    def test_names_come_free_with_the_definition_that_had_them(self, store: Store) -> None:
        reconcile = establishing.reconciler(store)
        admit(store, PLAN, WIDGETS)
        reconcile()
        assert condition(define(store, plural="gadgets"), "Established")["status"] == "False"
        delete(store, DEFINITIONS, "", NAME)
        reconcile()
        reconcile()
        assert [one.plural for one in store.kinds.served() if one.custom] == ["gadgets"] * 2

    def test_its_objects_go_with_it(self, store: Store) -> None:
        reconcile = establishing.reconciler(store)
        admit(store, PLAN, WIDGETS)
        reconcile()
        admit(store, PLAN, widget())
        held = widget("held")
        held["metadata"]["finalizers"] = ["test.k8snet.example/hold"]
        admit(store, PLAN, held)
        watch = store.watch(WIDGET)
        delete(store, DEFINITIONS, "", NAME)
        reconcile()
        definition = store.get(DEFINITIONS, "", NAME)
        assert definition["metadata"]["finalizers"] == [CLEANUP]
        assert condition(definition, "Terminating")["reason"] == "InstanceDeletionInProgress"
        assert [item["metadata"]["name"] for item in store.list(WIDGET)] == ["held"]
        reconcile()
        with pytest.raises(Terminating, match="create not allowed while custom resource definition is terminating"):
            admit(store, PLAN, widget("new"))
        store.delete(WIDGET, "shop", "held")
        reconcile()
        assert store.find(DEFINITIONS, "", NAME) is None
        assert store.kinds.by_kind("test.k8snet.example/v1", "Widget") is None
        assert asyncio.run(told(watch)) == [("MODIFIED", "held"), ("DELETED", "w"), ("DELETED", "held")]

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_mistakes(self, store: Store, mistake: str) -> None:
        path, value, words = MISTAKES[mistake]
        item = copy.deepcopy(WIDGETS)
        below: Any = item
        for step in path[:-1]:
            below = below[step]
        below[path[-1]] = value
        with pytest.raises(Invalid) as caught:
            admit(store, PLAN, item)
        assert words in caught.value.message

    def test_groups_of_kubernetes_need_an_approval(self, store: Store) -> None:
        item = copy.deepcopy(WIDGETS)
        item["spec"]["group"], item["metadata"]["name"] = "widgets.k8s.io", "widgets.widgets.k8s.io"
        words = 'protected groups must have approval annotation "api-approved.kubernetes.io"'
        with pytest.raises(Invalid, match=words):
            admit(store, PLAN, item)
        item["metadata"]["annotations"] = {"api-approved.kubernetes.io": "https://example.org"}
        admit(store, PLAN, item)

    def test_a_status_that_others_can_work_with(self, store: Store) -> None:
        definition = define(store)
        for status, words in (
            (None, "status.storedVersions: Invalid value: []string(nil): must have at least one stored version"),
            ({"storedVersions": ["v0"]}, "must have the storage version v1"),
        ):
            with pytest.raises(Invalid) as caught:
                replace_status(store, PLAN, DEFINITIONS, definition, {**definition, "status": status})
            assert words in caught.value.message
        stored = replace_status(
            store, PLAN, DEFINITIONS, definition, {**definition, "status": {"storedVersions": ["v1"]}}
        )
        assert stored["status"]["acceptedNames"] == {"kind": "", "plural": ""}
        establishing.reconciler(store)()
        assert store.get(DEFINITIONS, "", NAME)["status"]["acceptedNames"]["plural"] == "widgets"

    def test_what_can_not_change(self, store: Store) -> None:
        definition = define(store)
        item = copy.deepcopy(definition)
        item["spec"]["scope"] = "Cluster"
        item["spec"]["versions"] = [{**item["spec"]["versions"][0], "name": "v2"}]
        with pytest.raises(Invalid) as caught:
            replace(store, PLAN, DEFINITIONS, definition, item)
        assert [str(error) for error in caught.value.errors] == [
            'spec.scope: Invalid value: "Cluster": field is immutable',
            'status.storedVersions[0]: Invalid value: "v1": must appear in spec.versions',
        ]


class TestObjects:
    def test_they_are_stored_in_one_version(self, store: Store) -> None:
        define(store)
        admit(store, PLAN, widget(version="v1beta1"))
        assert store.list(WIDGET)[0]["apiVersion"] == "test.k8snet.example/v1"
        assert store.list(WIDGET)[0]["spec"] == {"size": "small", "replicas": 1}
        beta = store.kinds.by_kind("test.k8snet.example/v1beta1", "Widget")
        assert beta is not None
        replace(store, PLAN, beta, store.list(WIDGET)[0], widget(version="v1beta1", color="#000000"))
        assert store.list(WIDGET)[0]["apiVersion"] == "test.k8snet.example/v1"
        assert store.list(WIDGET)[0]["metadata"]["generation"] == 2

    def test_a_definition_that_changes_counts_for_what_is_there(self, store: Store) -> None:
        definition = define(store)
        admit(store, PLAN, widget(color="#000000"))
        changed = json.loads(json.dumps(definition))  # the versions of the file share one schema
        fields = changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        fields["lowest"]["default"] = 1
        del fields["color"]
        replace(store, PLAN, DEFINITIONS, definition, changed)
        establishing.reconciler(store)()
        v1, v1beta1 = (store.kinds.by_kind(f"test.k8snet.example/{version}", "Widget") for version in ("v1", "v1beta1"))
        assert v1 is not None and v1beta1 is not None
        (item,) = store.list(WIDGET)
        assert structural.in_version(v1, item)["spec"] == {"size": "small", "replicas": 1, "lowest": 1}
        assert structural.in_version(v1beta1, item)["spec"] == {"size": "small", "replicas": 1, "color": "#000000"}

    def test_a_kind_may_be_called_as_one_of_the_apis_own(self, store: Store) -> None:
        """As Knative's Service: nothing of a Service's defaults, checks and addresses is for it."""
        names = {"plural": "services", "singular": "service", "kind": "Service", "listKind": "ServiceList"}
        definition = define(store, **names, shortNames=["ksvc"])
        assert condition(definition, "Established")["status"] == "True"
        admit(store, PLAN, {**widget("9-no-dns-label-of-1035"), "kind": "Service"})
        (item,) = store.list(Resource("test.k8snet.example", "", "services", "", "Service", True))
        assert item["spec"] == {"size": "small", "replicas": 1}
        assert store.list(SERVICES) == []

    def test_they_own_and_are_owned(self, store: Store) -> None:
        define(store)
        owner = admit(store, PLAN, widget())
        config: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}
        config["metadata"]["ownerReferences"] = [owner_reference(owner)]
        admit(store, PLAN, config)
        collect = garbage.reconciler(store)
        collect()
        assert len(store.list(CONFIGMAPS)) == 1
        delete(store, WIDGET, "shop", "w")
        collect()
        assert store.list(CONFIGMAPS) == []

    def test_they_go_with_their_namespace(self, store: Store) -> None:
        define(store)
        admit(store, PLAN, widget())
        store.update(NAMESPACES, {**store.get(NAMESPACES, "", "shop"), "spec": {"finalizers": ["kubernetes"]}})
        delete(store, NAMESPACES, "", "shop")
        garbage.reconciler(store)()
        assert (store.list(WIDGET), store.find(NAMESPACES, "", "shop")) == ([], None)


def schema(**properties: Any) -> Object:
    return {"type": "object", "properties": properties}


class TestValues:
    @pytest.mark.parametrize(
        ("below", "value", "words"),
        [
            ({"type": "string"}, None, 'Invalid value: "null": a in body must be of type string: "null"'),
            ({"type": "string", "nullable": True}, None, None),
            ({"type": "integer"}, 1.0, None),
            ({"type": "integer"}, True, 'Invalid value: "boolean": a in body must be of type integer: "boolean"'),
            (
                {"type": "number", "minimum": 1, "exclusiveMinimum": True},
                1,
                "Invalid value: 1: a in body should be greater than 1",
            ),
            ({"type": "number", "multipleOf": 2}, 3, "Invalid value: 3: a in body should be a multiple of 2"),
            ({"type": "string", "minLength": 2}, "x", 'Invalid value: "x": a in body should be at least 2 chars long'),
            (
                {"type": "array", "minItems": 1},
                [],
                "Invalid value: []interface {}{}: a in body should have at least 1 items",
            ),
            ({"type": "string", "format": "ipv4"}, "x", 'Invalid value: "x": a in body must be of type ipv4: "x"'),
            ({"type": "string", "pattern": "^a(?i)b$"}, "x", None),  # Go's, not Python's
            ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "bbb", "Too long: must have at most 2 bytes"),
            (
                {"type": "string", "pattern": "^a+$", "maxLength": 2},
                "b",
                "Invalid value: \"b\": a in body should match '^a+$'",
            ),
            ({"type": "string", "format": "date-time"}, "2026-11-28T19:00:00Z", None),
            ({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}, ["x", "y"], None),
        ],
    )
    def test_one_field(self, below: Object, value: Any, words: str | None) -> None:
        found = [f"{error.field}: {error.words}" for error in values.mistakes({"a": value}, schema(a=below))]
        assert found == ([] if words is None else [f"a: {words}"])

    def test_alternatives(self) -> None:
        below = {
            "type": "object",
            "properties": {"x": {"type": "string"}},
            "oneOf": [{"required": ["x"]}, {"required": ["y"]}],
        }
        found = [str(error) for error in values.mistakes({"spec": {}}, schema(spec=below))]
        assert (
            found[0]
            == 'spec: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid'
        )
        both = {"spec": {"x": "", "y": ""}}
        assert "schema (oneOf). Found 2 valid alternatives" in str(values.mistakes(both, schema(spec=below))[0])

    def test_pruning_keeps_what_is_allowed(self) -> None:
        open_one = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"in": schema()}}
        kinds = schema(open=open_one, map={"type": "object", "additionalProperties": schema(a={"type": "string"})})
        item = {"kind": "X", "open": {"x": {"y": 1}, "in": {"z": 1}}, "map": {"k": {"a": "", "b": ""}}, "no": [1]}
        kept, unknown = structural.pruned(item, kinds)
        assert kept == {"kind": "X", "open": {"x": {"y": 1}, "in": {}}, "map": {"k": {"a": ""}}}
        assert unknown == ["open.in.z", "map.k.b", "no"]

    def test_defaults_go_where_something_is(self) -> None:
        inside = schema(b={"type": "integer", "default": 7}, c={"type": "string", "default": "x", "nullable": True})
        kinds = schema(a=inside, d={"type": "array", "items": inside}, e={**inside, "default": {}})
        assert structural.completed({"d": [{}, {"b": None, "c": None}]}, kinds) == {
            "d": [{"b": 7, "c": "x"}, {"b": 7, "c": None}],
            "e": {"b": 7, "c": "x"},
        }


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "value", "words"),
        [
            ("self.a <= self.b", {"a": 2, "b": 1}, 'Invalid value: "object": failed rule: self.a <= self.b'),
            ("self.a <= self.b", {"a": 1, "b": 1}, None),
            (
                "self.all(x, self.exists_one(y, x.n == y.n))",
                [{"n": 1}, {"n": 1}],
                'Invalid value: "array": failed rule: ',
            ),
            ("self.__namespace__ == 'x' && self.a__dash__b == 1", {"namespace": "x", "a-b": 1}, None),
            ("self.__namespace__ == 'y'", {"namespace": "x"}, 'Invalid value: "object": failed rule: '),
            ("self.c > 1", {}, 'Invalid value: "object": no such key: c evaluating rule: self.c > 1'),
            ("self == oldSelf", {"a": 1}, None),
            ("self.a.url().getHost() == 'x'", {"a": 1}, None),  # functions that are not here
            ("self.s.split(',')[1].trim().upperAscii() == 'B'", {"s": "a, b"}, None),
            ("self.s.find('[0-9]+') == '12' && self.s.findAll('[0-9]', 1) == ['1']", {"s": "a12"}, None),
            ("self.s.indexOf('b') == 1 && self.s.replace('b', 'c').substring(1) == 'c'", {"s": "ab"}, None),
            ("isURL(self.s) && isIP('10.0.0.1') && !isIP(self.s) && isQuantity('1Gi')", {"s": "http://x"}, None),
            ("[1, 2].isSorted() && [1, 2].sum() == 3 && [3, 1].min() == 1", {}, None),
            ("self.s.charAt(0) == 'b'", {"s": "a"}, 'Invalid value: "object": failed rule: self.s.charAt(0)'),
            ("self.s.substring(9) == ''", {"s": "a"}, "Invalid value: \"object\": Function 'substring' error: "),
        ],
    )
    def test_one_rule(self, rule: str, value: Any, words: str | None) -> None:
        names = ("a", "b", "c", "namespace", "a-b")
        inside: Object = schema(**{name: {"type": "integer"} for name in names}, s={"type": "string"})
        if isinstance(value, list):
            inside = {"type": "array", "items": schema(n={"type": "integer"})}
        inside["x-kubernetes-validations"] = [{"rule": rule}]
        found = list(rules.mistakes({"spec": value}, schema(spec=inside)))
        assert len(found) == (words is not None)
        assert words is None or (found[0].field, found[0].words[: len(words)]) == ("spec", words)

    def test_a_rule_for_changes(self) -> None:
        inside = {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}],
        }
        kinds = schema(spec=schema(a=inside))
        new, old = {"spec": {"a": "x"}}, {"spec": {"a": "y"}}
        assert [str(error) for error in rules.mistakes(new, kinds, old)] == [
            'spec.a: Invalid value: "string": is immutable'
        ]
        assert list(rules.mistakes(new, kinds, {"spec": {}})) == []


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        (".spec.size", "string", "small"),
        (".spec.list", "string", '["a","b"]'),
        (".spec.list[1]", "string", "b"),
        (".spec.count", "integer", 3),
        (".spec.count", "string", "3"),
        (".spec.size", "integer", None),
        (".spec.none", "string", None),
        ('.status.conditions[?(@.type=="Ready")].status', "string", "True"),
        ("['status'].conditions[*].type", "string", "Old"),
        (r".metadata.annotations.example\.org/a-b", "string", "yes"),
        (".metadata.creationTimestamp", "date", "long"),
        (".spec.size", "date", "<invalid>"),
    ],
)
def test_columns(path: str, kind: str, expected: Any) -> None:
    item = {
        "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {"example.org/a-b": "yes"}},
        "spec": {"size": "small", "list": ["a", "b"], "count": 3},
        "status": {"conditions": [{"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"}]},
    }

    def ago(moment: str) -> str:
        if moment != "2026-01-01T00:00:00Z":
            raise ValueError(moment)
        return "long"

    assert columns.cell(item, {"jsonPath": path, "type": kind}, ago) == expected


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("port: 80}, {name: cart-next", "weight: 1}, {name: cart-next", "Must have port for Service reference"),
        ("value: /cart", "value: cart", "value must be an absolute path and start with '/' when type one of"),
        (
            "protocol: HTTP, port",
            "protocol: HTTPS, tls: {mode: Passthrough}, port",
            "tls mode must be Terminate for protocol",
        ),
        (
            "protocol: HTTP, port: 80}",
            "protocol: HTTP, port: 80}, {name: b, protocol: HTTP, port: 80}",
            "must be unique for each",
        ),
        (
            "parentRefs: [{name: door}]\n  hostnames",
            "parentRefs: [{name: door}, {name: door}]\n  hostnames",
            "sectionName must be",
        ),
        (
            "rules: [{matches",
            "rules: [{filters: [{type: RequestMirror}], matches",
            "filter.requestMirror must be specified for",
        ),
        (
            "hostnames: [shop.example]",
            "hostnames: ['*']",
            "spec.hostnames[0] in body should match '^(\\*\\.)?[a-z0-9](",
        ),
        ("group: gateway.networking.k8s.io, kind: HTTPRoute", "group: x", "spec.from[0].kind: Required value"),
    ],
)
def test_mistakes_in_the_gateway_api(store: Store, old: str, new: str, words: str) -> None:
    for item in manifests.parse((files(manifests) / "gateway.yaml").read_text()):
        admit(store, PLAN, item)
    establishing.reconciler(store)()
    text = (Path(__file__).parents[1] / "gateway.yaml").read_text()
    assert old in text
    found = []
    for item in manifests.parse(text.replace(old, new)):
        item["metadata"]["namespace"] = "shop"
        try:
            admit(store, PLAN, item)
        except Invalid as error:
            found += error.errors
    assert (len(found), words in str(found[0])) == (1, True), found
