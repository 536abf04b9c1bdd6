"""Bodies in Kubernetes' protobuf form, which kubectl sends from 1.32 on when it makes an object itself.

Stands for k8s.io/apimachinery/pkg/runtime/serializer/protobuf: the bytes "k8s\\0", then a message Unknown with the kind
and the object. The numbers of the fields are in protobuf.json, which tests/labs/write_protobuf.py makes from the struct
tags of k8s.io/api. Answers are always JSON.

What belongs here: protobuf's wire format and the numbers of fields. What does not: what the objects mean.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"

# What is the same in all versions, and not in the sources as structs (k8s.io/apimachinery: runtime, intstr, resource).
_FIXED: dict[str, dict[str, list[str]]] = {
    "Unknown": {
        "1": ["typeMeta", "TypeMeta"],
        "2": ["raw", "raw"],
        "3": ["contentEncoding", "string"],
        "4": ["contentType", "string"],
    },
    "TypeMeta": {"1": ["apiVersion", "string"], "2": ["kind", "string"]},
    "Time": {"1": ["seconds", "int"], "2": ["nanos", "int"]},
    "IntOrString": {"1": ["type", "int"], "2": ["intVal", "int"], "3": ["strVal", "string"]},
    "Quantity": {"1": ["string", "string"]},
    "RawExtension": {"1": ["raw", "raw"]},
}
# The options of a deletion come under whichever group the object is of.
_ANYWHERE = frozenset({"DeleteOptions"})


@functools.cache
def types() -> dict[str, dict[str, list[str]]]:
    """Type -> number -> field and form, as tests/labs/write_protobuf.py describes them."""
    document: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("protobuf.json").read_text())
    return {**document, **_FIXED}


def decode(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises ValueError for what can't be read."""
    if not data.startswith(MAGIC):
        raise ValueError("the body does not start with the magic number of Kubernetes' protobuf form")
    envelope = _message(data[len(MAGIC) :], "Unknown")
    meta = envelope.get("typeMeta") or {}
    kind = _type_name(str(meta.get("apiVersion", "")), str(meta.get("kind", "")))
    if kind not in types():
        raise ValueError(f"kind {meta.get('kind', '')!r} is known here in JSON only")
    return {**meta, **_message(envelope.get("raw", b""), kind)}


def _type_name(api_version: str, kind: str) -> str:
    """The type of a kind: core_v1.Pod, networking_v1.Ingress."""
    group, _, version = api_version.rpartition("/")
    package = "meta_v1" if kind in _ANYWHERE else f"{group.partition('.')[0] or 'core'}_{version}"
    return f"{package}.{kind}"


def _message(data: bytes, kind: str) -> dict[str, Any]:
    """A message as JSON has it: what is empty is left out, unless it may mean something."""
    found: dict[str, Any] = {}
    fields = types()[kind]
    for number, value in _fields(data):
        if str(number) not in fields:
            raise ValueError(f"field {number} of {kind} is not known here")
        name, form = fields[str(number)]
        if form.startswith("[]"):
            found.setdefault(name, []).append(_value(value, form[2:]))
        elif form.startswith("{}"):
            key, entry = _entry(value, form[2:])
            found.setdefault(name, {})[key] = entry
        elif not name:  # its fields stand here
            found.update(_value(value, form))
        else:
            decoded = _value(value, form.rstrip("?"))
            if form.endswith("?") or decoded not in ("", 0, False, {}, b"", None):
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


def _value(value: int | bytes, form: str) -> Any:
    if form in ("int", "bool"):
        if not isinstance(value, int):
            raise ValueError("a number was to be here")
        return bool(value) if form == "bool" else value - (1 << 64) if value >> 63 else value
    data = _bytes(value)
    match form:
        case "string":
            return data.decode()
        case "bytes":
            return base64.b64encode(data).decode()
        case "raw":
            return data
    fields = _message(data, form)
    match form:
        case "IntOrString":
            return fields.get("strVal", "") if fields.get("type") else fields.get("intVal", 0)
        case "Quantity":
            return fields.get("string", "0")
        case "Time":
            return _time(fields) if fields else None
        case "RawExtension":
            return json.loads(fields.get("raw") or b"null")
    return fields


def _time(fields: dict[str, int]) -> str:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        moment += datetime.timedelta(seconds=fields.get("seconds", 0), microseconds=fields.get("nanos", 0) // 1000)
    except OverflowError:
        raise ValueError("a time is too far away") from None
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


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
