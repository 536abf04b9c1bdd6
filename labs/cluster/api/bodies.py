"""What a client sends: from bytes to an object that can be trusted to have the form of its kind.

Stands for k8s.io/apiserver/pkg/endpoints/handlers/{create,update,rest}.go where they read and decode, with their words.
Left out: CBOR, which is refused as any unknown form is.

What belongs here: bytes, JSON, types, unknown fields. What does not: whether the object makes sense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from labs.cluster import schema
from labs.cluster.api import protobuf, status
from labs.cluster.extensions import structural
from labs.cluster.resources import CustomVersion, Object, Resource

MAX_BYTES = 3 * 1024 * 1024  # MaxRequestBodyBytes of the generic API server
MAX_DEPTH = 500
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
JSON_TYPE, YAML_TYPE = "application/json", "application/yaml"
READ = (JSON_TYPE, protobuf.MEDIA_TYPE, YAML_TYPE)
_VALIDATIONS = ("Ignore", "Warn", "Strict")


@dataclass(slots=True)
class Options:
    """What the query says of a write. `warnings` are what the client is told in headers."""

    dry_run: bool = False
    manager: str = ""
    validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, request: web.BaseRequest) -> Options:
        """Raises ApiError 422 for values that there are not."""
        query = request.query
        dry_run = query.getall("dryRun", [])
        if any(value != "All" for value in dry_run):
            raise status.bad_options("dryRun", dry_run[0], ("All",))
        validation = query.get("fieldValidation", "") or "Warn"
        if validation not in _VALIDATIONS:
            raise status.bad_options("fieldValidation", validation, ("", *_VALIDATIONS))
        force = query.get("force", "").lower() in ("1", "true")
        manager = query.get("fieldManager", "") or request.headers.get("User-Agent", "unknown").partition("/")[0]
        return cls(bool(dry_run), manager, validation, force)


async def read(request: web.BaseRequest) -> bytes:
    """The whole body. Raises ApiError 413 for one that is too large."""
    if (request.content_length or 0) > MAX_BYTES:
        raise status.too_large(MAX_BYTES)
    data = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > MAX_BYTES:
            raise status.too_large(MAX_BYTES)
    return bytes(data)


def content_type(request: web.BaseRequest) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("Content-Type", JSON_TYPE).partition(";")[0].strip().lower()


def decode(data: bytes, media_type: str) -> Any:
    """A JSON (or YAML) value. Raises ValueError with Go's words as far as they can be had."""
    if media_type == YAML_TYPE:
        return _from_yaml(data)
    if media_type == protobuf.MEDIA_TYPE:
        return protobuf.decode(data)
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(_go_words(data, error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid character '\\x{data[error.start]:02x}' looking for beginning of value") from None
    except RecursionError:
        raise ValueError("exceeded max depth") from None
    return _without_surrogates(value) if SURROGATE.search(data) else value


def _without_surrogates(value: Any) -> Any:
    """A value whose texts can be written: half of a pair of surrogates is U+FFFD, as in Go."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(entry) for name, entry in value.items()}
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")


def _go_words(data: bytes, error: json.JSONDecodeError) -> str:
    text = data.decode(errors="replace")
    if error.pos >= len(text.rstrip()):
        return "unexpected end of JSON input"
    return f"invalid character {text[error.pos]!r} looking for beginning of value"


def _from_yaml(data: bytes) -> Any:
    import yaml

    try:
        return yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"yaml: {' '.join(str(error).split())}") from None


def read_question(data: bytes, media_type: str) -> Any:
    """A body that is answered and not kept. Raises ApiError 400 or 415."""
    if media_type not in READ:
        raise status.unsupported_media_type(READ)
    try:
        return decode(data, media_type)
    except ValueError as error:
        raise status.bad_request(f"couldn't get version/kind; json parse error: {error} ({_summary(data)})") from None


def read_object(data: bytes, media_type: str, resource: Resource, options: Options) -> Object:
    """The object of a kind that a body holds. Raises ApiError 400 or 415."""
    if media_type not in READ:
        raise status.unsupported_media_type(READ)
    try:
        item = decode(data, media_type)
    except ValueError as error:
        words = f"couldn't get version/kind; json parse error: {error} ({_summary(data)})"
        raise status.bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): {words}"
        ) from None
    if not isinstance(item, dict):
        words = "couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct"
        raise status.bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): {words} ({_summary(data)})"
        )
    item.setdefault("apiVersion", resource.api_version)
    item.setdefault("kind", resource.kind)
    return check_object(item, resource, options)


def _summary(data: bytes) -> str:
    """What of a body is shown (summarizeData)."""
    if not data:
        return "<empty>"
    more = " ..." if len(data) > 30 else ""
    return (data[:30].decode(errors="replace") if data[:1] == b"{" else data[:30].hex()) + more


def check_object(item: Object, resource: Resource, options: Options) -> Object:
    """An object, if it is one of that kind; without its nulls. Raises ApiError 400."""
    version, kind = item.get("apiVersion"), item.get("kind")
    if version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    short = resource.version
    if kind != resource.kind:
        raise status.bad_request(
            f'{kind} in version "{short}" cannot be handled as a {resource.kind}: '
            f"converting ({short}.{kind}) to ({resource.group or 'core'}.{resource.kind}): unknown conversion"
        )
    return typed(
        item,
        resource,
        options,
        lambda words: status.bad_request(f'{kind} in version "{short}" cannot be handled as a {kind}: {words}'),
    )


def typed(item: Object, resource: Resource, options: Options, failure: Callable[[str], status.ApiError]) -> Object:
    """An object whose fields have the right types, without its nulls; unknown fields are dropped, and told of or
    refused as the client wants. Raises what `failure` makes of the words."""
    try:
        if resource.custom is not None:
            kept, unknown = _custom(item, resource.custom)
        else:
            kept, unknown = _builtin(item, str(schema.type_name(resource)))
    except schema.WrongType as error:
        raise failure(str(error)) from None
    except RecursionError:
        raise failure("exceeded max depth") from None
    words = [f'unknown field "{path}"' for path in unknown]
    if words and options.validation == "Strict":
        raise failure(f"strict decoding error: {', '.join(words)}")
    if words and options.validation == "Warn":
        options.warnings += words
    return _without_empty_maps(kept)


def _without_empty_maps(item: Object) -> Object:
    """Labels and annotations of which there are none are not there (omitempty)."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict) or (metadata.get("labels") != {} and metadata.get("annotations") != {}):
        return item
    kept = {key: value for key, value in metadata.items() if key not in ("labels", "annotations") or value}
    return {**item, "metadata": kept}


def _builtin(item: Object, name: str) -> tuple[Object, list[str]]:
    """An object of a type, and the paths of what it does not have."""
    unknown = schema.check(item, name)
    cleaned: Object = schema.without_nulls(item)
    return schema.prune(cleaned, name) if unknown else cleaned, unknown


def _custom(item: Object, version: CustomVersion) -> tuple[Object, list[str]]:
    """A custom object: its metadata has a type as all metadata have, the rest a schema."""
    metadata = item.get("metadata") or {}
    unknown = [f"metadata.{path}" for path in schema.check(metadata, "meta_v1.ObjectMeta")]
    kept, others = structural.pruned(item, version.schema)
    cleaned = schema.prune(schema.without_nulls(metadata), "meta_v1.ObjectMeta")
    return {**kept, "metadata": cleaned}, unknown + others
