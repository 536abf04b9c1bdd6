"""Bodies in Kubernetes' protobuf form, which kubectl sends from 1.32 on when it makes an object itself.

Stands for k8s.io/apimachinery/pkg/runtime/serializer/protobuf: the bytes "k8s\\0", then a message Unknown with the kind
and the object. Only the kinds that kubectl sends so are known, with the fields of generated.proto (k8s.io/api) that it
sets; anything else is refused, whereupon a client can use JSON. Answers are always JSON.

What belongs here: protobuf's wire format and the numbers of fields. What does not: what the objects mean.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"

# Type -> number -> (field, type). "[]": repeated; "{}": a map of text; "?": 0 or false is not the same as absent.
_NUMBERS: dict[str, dict[int, tuple[str, str]]] = {
    "Unknown": {1: ("typeMeta", "TypeMeta"), 2: ("raw", "bytes"), 3: ("", "string"), 4: ("", "string")},
    "TypeMeta": {1: ("apiVersion", "string"), 2: ("kind", "string")},
    "ObjectMeta": {
        1: ("name", "string"),
        2: ("generateName", "string"),
        3: ("namespace", "string"),
        4: ("", "string"),
        5: ("uid", "string"),
        6: ("resourceVersion", "string"),
        7: ("", "int"),
        8: ("", "Time"),
        9: ("", "Time"),
        10: ("", "int"),
        11: ("labels", "{}string"),
        12: ("annotations", "{}string"),
        13: ("ownerReferences", "[]OwnerReference"),
        14: ("finalizers", "[]string"),
    },
    "OwnerReference": {
        1: ("kind", "string"),
        3: ("name", "string"),
        4: ("uid", "string"),
        5: ("apiVersion", "string"),
        6: ("controller", "bool?"),
        7: ("blockOwnerDeletion", "bool?"),
    },
    "Time": {1: ("seconds", "int"), 2: ("nanos", "int")},
    "LabelSelector": {1: ("matchLabels", "{}string"), 2: ("matchExpressions", "[]LabelSelectorRequirement")},
    "LabelSelectorRequirement": {1: ("key", "string"), 2: ("operator", "string"), 3: ("values", "[]string")},
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NamespaceSpec"), 3: ("", "bytes")},
    "NamespaceSpec": {1: ("finalizers", "[]string")},
    "Deployment": {1: ("metadata", "ObjectMeta"), 2: ("spec", "DeploymentSpec"), 3: ("", "bytes")},
    "DeploymentSpec": {
        1: ("replicas", "int?"),
        2: ("selector", "LabelSelector"),
        3: ("template", "PodTemplateSpec"),
        4: ("strategy", "DeploymentStrategy"),
        5: ("minReadySeconds", "int"),
        6: ("revisionHistoryLimit", "int?"),
        7: ("paused", "bool"),
        9: ("progressDeadlineSeconds", "int?"),
    },
    "DeploymentStrategy": {1: ("type", "string")},
    "PodTemplateSpec": {1: ("metadata", "ObjectMeta"), 2: ("spec", "PodSpec")},
    "Pod": {1: ("metadata", "ObjectMeta"), 2: ("spec", "PodSpec"), 3: ("", "bytes")},
    "PodSpec": {
        2: ("containers", "[]Container"),
        3: ("restartPolicy", "string"),
        4: ("terminationGracePeriodSeconds", "int?"),
        6: ("dnsPolicy", "string"),
        7: ("nodeSelector", "{}string"),
        8: ("serviceAccountName", "string"),
        9: ("serviceAccount", "string"),
        10: ("nodeName", "string"),
        11: ("hostNetwork", "bool"),
        12: ("hostPID", "bool"),
        13: ("hostIPC", "bool"),
        15: ("imagePullSecrets", "[]LocalObjectReference"),
        16: ("hostname", "string"),
        17: ("subdomain", "string"),
        19: ("schedulerName", "string"),
        20: ("initContainers", "[]Container"),
        21: ("automountServiceAccountToken", "bool?"),
        24: ("priorityClassName", "string"),
    },
    "LocalObjectReference": {1: ("name", "string")},
    "Container": {
        1: ("name", "string"),
        2: ("image", "string"),
        3: ("command", "[]string"),
        4: ("args", "[]string"),
        5: ("workingDir", "string"),
        6: ("ports", "[]ContainerPort"),
        7: ("env", "[]EnvVar"),
        8: ("resources", "ResourceRequirements"),
        13: ("terminationMessagePath", "string"),
        14: ("imagePullPolicy", "string"),
        16: ("stdin", "bool"),
        17: ("stdinOnce", "bool"),
        18: ("tty", "bool"),
        20: ("terminationMessagePolicy", "string"),
    },
    "ContainerPort": {
        1: ("name", "string"),
        2: ("hostPort", "int"),
        3: ("containerPort", "int"),
        4: ("protocol", "string"),
        5: ("hostIP", "string"),
    },
    "EnvVar": {1: ("name", "string"), 2: ("value", "string")},
    "ResourceRequirements": {1: ("limits", "{}Quantity"), 2: ("requests", "{}Quantity")},
    "Quantity": {1: ("string", "string")},
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec"), 3: ("", "bytes")},
    "ServiceSpec": {
        1: ("ports", "[]ServicePort"),
        2: ("selector", "{}string"),
        3: ("clusterIP", "string"),
        4: ("type", "string"),
        5: ("externalIPs", "[]string"),
        7: ("sessionAffinity", "string"),
        8: ("loadBalancerIP", "string"),
        9: ("loadBalancerSourceRanges", "[]string"),
        10: ("externalName", "string"),
        11: ("externalTrafficPolicy", "string"),
        12: ("healthCheckNodePort", "int"),
        13: ("publishNotReadyAddresses", "bool"),
        17: ("ipFamilyPolicy", "string"),
        18: ("clusterIPs", "[]string"),
        19: ("ipFamilies", "[]string"),
        20: ("allocateLoadBalancerNodePorts", "bool?"),
        21: ("loadBalancerClass", "string"),
        22: ("internalTrafficPolicy", "string"),
    },
    "ServicePort": {
        1: ("name", "string"),
        2: ("protocol", "string"),
        3: ("port", "int"),
        4: ("targetPort", "IntOrString"),
        5: ("nodePort", "int"),
        6: ("appProtocol", "string"),
    },
    "IntOrString": {1: ("type", "int"), 2: ("intVal", "int"), 3: ("strVal", "string")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}string"),
        3: ("binaryData", "{}bytes"),
        4: ("immutable", "bool?"),
    },
    "Secret": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "{}bytes"),
        3: ("type", "string"),
        4: ("stringData", "{}string"),
        5: ("immutable", "bool?"),
    },
    "ServiceAccount": {
        1: ("metadata", "ObjectMeta"),
        3: ("imagePullSecrets", "[]LocalObjectReference"),
        4: ("automountServiceAccountToken", "bool?"),
    },
    "Ingress": {1: ("metadata", "ObjectMeta"), 2: ("spec", "IngressSpec"), 3: ("", "bytes")},
    "IngressSpec": {
        1: ("defaultBackend", "IngressBackend"),
        2: ("tls", "[]IngressTLS"),
        3: ("rules", "[]IngressRule"),
        4: ("ingressClassName", "string"),
    },
    "IngressBackend": {4: ("service", "IngressServiceBackend")},
    "IngressServiceBackend": {1: ("name", "string"), 2: ("port", "ServiceBackendPort")},
    "ServiceBackendPort": {1: ("name", "string"), 2: ("number", "int")},
    "IngressTLS": {1: ("hosts", "[]string"), 2: ("secretName", "string")},
    "IngressRule": {1: ("host", "string"), 2: ("", "IngressRuleValue")},  # embedded: its fields are the rule's
    "IngressRuleValue": {1: ("http", "HTTPIngressRuleValue")},
    "HTTPIngressRuleValue": {1: ("paths", "[]HTTPIngressPath")},
    "HTTPIngressPath": {1: ("path", "string"), 2: ("backend", "IngressBackend"), 3: ("pathType", "string")},
    "Eviction": {1: ("metadata", "ObjectMeta"), 2: ("deleteOptions", "DeleteOptions")},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int?"),
        2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "bool?"),
        4: ("propagationPolicy", "string"),
        5: ("dryRun", "[]string"),
    },
    "Preconditions": {1: ("uid", "string"), 2: ("resourceVersion", "string")},
}
_EMBEDDED = frozenset({"IngressRuleValue"})


def decode(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises ValueError for what can't be read."""
    if not data.startswith(MAGIC):
        raise ValueError("the body does not start with the magic number of Kubernetes' protobuf form")
    envelope = _message(data[len(MAGIC) :], "Unknown", raw=True)
    meta = envelope.get("typeMeta") or {}
    kind = str(meta.get("kind", ""))
    if kind not in _NUMBERS:
        raise ValueError(f"kind {kind!r} is known here in JSON only")
    return {**meta, **_message(envelope.get("raw", b""), kind)}


def _message(data: bytes, kind: str, *, raw: bool = False) -> dict[str, Any]:
    """A message as JSON has it: what is empty is left out, unless it may mean something."""
    found: dict[str, Any] = {}
    for number, value in _fields(data):
        if number not in _NUMBERS[kind]:
            raise ValueError(f"field {number} of {kind} is known here in JSON only")
        name, form = _NUMBERS[kind][number]
        if form.startswith("[]"):
            found.setdefault(name, []).append(_value(value, form[2:], raw=raw))
        elif form.startswith("{}"):
            key, entry = _entry(value, form[2:])
            found.setdefault(name, {})[key] = entry
        elif form in _EMBEDDED:
            found.update(_value(value, form, raw=raw))
        elif name:
            decoded = _value(value, form.rstrip("?"), raw=raw)
            if form.endswith("?") or decoded not in ("", 0, False, {}, b""):
                found[name] = decoded
    return found


def _entry(value: int | bytes, form: str) -> tuple[str, Any]:
    """One pair of a map."""
    key, entry = "", _value(b"", form)
    for number, part in _fields(_bytes(value)):
        if number == 1:
            key = _bytes(part).decode()
        elif number == 2:
            entry = _value(part, form)
    return key, entry


def _value(value: int | bytes, form: str, *, raw: bool = False) -> Any:
    if form in ("int", "bool"):
        if not isinstance(value, int):
            raise ValueError("a number was to be here")
        return bool(value) if form == "bool" else value - (1 << 64) if value >> 63 else value
    data = _bytes(value)
    if form == "string":
        return data.decode()
    if form == "bytes":
        return data if raw else base64.b64encode(data).decode()
    if form == "IntOrString":
        fields = _message(data, form)
        return fields.get("strVal", "") if fields.get("type") else fields.get("intVal", 0)
    if form == "Quantity":
        return _message(data, form).get("string", "0")
    return _message(data, form)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("bytes were to be here")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number, and a number or bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                value, position = _varint(data, position)
                yield tag >> 3, value
            case 2:
                size, position = _varint(data, position)
                if position + size > len(data):
                    raise ValueError("unexpected end of the body")
                yield tag >> 3, data[position : position + size]
                position += size
            case kind:
                raise ValueError(f"wire type {kind} is not known here")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("unexpected end of the body")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, position
    raise ValueError("a number is too long")
