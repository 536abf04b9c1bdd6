"""OpenAPI v2 as protobuf, the only form in which older kubectls (and `kubectl explain` of them) take it.

Stands for github.com/google/gnostic, openapiv2/OpenAPIv2.proto, from which the numbers of the fields are; protobuf's
wire format is a length, a number and bytes (protobuf.dev/programming-guides/encoding). Only what
`labs.cluster.api.openapi` puts into its documents is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# What clients ask for, and what they are given: Go's parser of media types takes no "@" in an answer.
ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
GIVEN = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def encode(document: dict[str, Any]) -> bytes:
    """A Document."""
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(_part(2, _named(path, _path_item(item))) for path, item in document["paths"].items())
    definitions = b"".join(_part(1, _named(name, _schema(entry))) for name, entry in document["definitions"].items())
    return _text(1, document["swagger"]) + _part(2, info) + _part(8, paths) + _part(9, definitions)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _part(number: int, data: bytes) -> bytes:
    """A field that holds a message or bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _part(number, text.encode())


def _texts(number: int, texts: Iterable[str]) -> bytes:
    return b"".join(_text(number, text) for text in texts)


def _named(name: str, value: bytes) -> bytes:
    return _text(1, name) + _part(2, value)


def _extensions(number: int, entry: dict[str, Any]) -> bytes:
    """The x-… of an object: each a NamedAny with its value as YAML, of which JSON is a part."""
    return b"".join(
        _part(number, _named(name, _text(2, json.dumps(value))))
        for name, value in entry.items()
        if name.startswith("x-")
    )


def _path_item(item: dict[str, Any]) -> bytes:
    numbers = {"get": 2, "put": 3, "post": 4, "patch": 8}
    return b"".join(_part(numbers[method], _operation(entry)) for method, entry in item.items())


def _operation(entry: dict[str, Any]) -> bytes:
    parameters = b"".join(_part(8, _part(1, _part(2, _part(3, _query(one))))) for one in entry["parameters"])
    responses = b"".join(
        _part(1, _named(code, _part(1, _text(1, response["description"]))))
        for code, response in entry["responses"].items()
    )
    return parameters + _part(9, responses) + _extensions(13, entry)


def _query(parameter: dict[str, Any]) -> bytes:
    """A QueryParameterSubSchema."""
    return _text(2, parameter["in"]) + _text(4, parameter["name"]) + _text(6, parameter["type"])


def _schema(entry: dict[str, Any]) -> bytes:
    data = b""
    if "$ref" in entry:
        data += _text(1, entry["$ref"])
    if "format" in entry:
        data += _text(2, entry["format"])
    if "description" in entry:
        data += _text(4, entry["description"])
    data += _texts(19, entry.get("required", ()))
    if "additionalProperties" in entry:
        more = entry["additionalProperties"]
        data += _part(21, _part(1, _schema(more)) if isinstance(more, dict) else _varint(2 << 3) + bytes([bool(more)]))
    if "type" in entry:
        data += _part(22, _text(1, entry["type"]))
    if "items" in entry:
        data += _part(23, _part(1, _schema(entry["items"])))
    if "properties" in entry:
        fields = b"".join(_part(1, _named(name, _schema(one))) for name, one in entry["properties"].items())
        data += _part(25, fields)
    return data + _extensions(31, entry)
