"""The four ways to change a part of an object, by the body's media type.

Stands for k8s.io/apiserver/pkg/endpoints/handlers/patch.go: strategic merge (`labs.cluster.api.strategic`), merge
(RFC 7386), JSON patch (RFC 6902, by the library jsonpatch), and server-side apply (`labs.cluster.api.apply`).

What belongs here: from bytes and an object to another object, and the API's words when that fails. What does not: the
form of the result (`labs.cluster.api.bodies`), storing it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from labs.cluster import schema
from labs.cluster.api import status, strategic
from labs.cluster.api.bodies import YAML_TYPE, decode
from labs.cluster.mergepatch import merge
from labs.cluster.resources import Object

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
MOST_OPERATIONS = 10_000


def media_types(kind: str | None) -> tuple[str, ...]:
    """The patches that objects of a type can be given; a kind without type (custom resources) has no strategic ones."""
    return (JSON_PATCH, MERGE_PATCH, *((STRATEGIC_PATCH,) if kind else ()), APPLY_PATCH)


def read_patch(data: bytes, media_type: str) -> Any:
    """The patch in a body. Raises ApiError 400."""
    try:
        patch = decode(data, YAML_TYPE if media_type == APPLY_PATCH else "application/json")
    except ValueError as error:
        raise status.bad_request(f"error decoding patch: {error}") from None
    if media_type == JSON_PATCH:
        if not isinstance(patch, list):
            words = "json: cannot unmarshal object into Go value of type jsonpatch.Patch"
            raise status.bad_request(f"error decoding patch: {words}")
        if len(patch) > MOST_OPERATIONS:
            words = f"The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {len(patch)}"
            raise status.too_large(MOST_OPERATIONS, words)
    elif not isinstance(patch, dict):
        found = {str: "string", list: "array", bool: "bool"}.get(type(patch), "number")
        words = f"json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        raise status.bad_request(f"error decoding patch: {words}")
    return patch


def patched(item: Object, patch: Any, media_type: str, kind: str | None) -> Object:
    """What an object of a type becomes. Raises ApiError 400, 415 or 422."""
    if media_type not in media_types(kind) or media_type == APPLY_PATCH:
        raise status.unsupported_media_type(media_types(kind))
    if media_type == JSON_PATCH:
        result: Any = _json_patch(item, patch)
    elif media_type == MERGE_PATCH:
        result = merge(item, patch)
    else:
        try:
            result = strategic.apply(item, patch, str(kind))
        except strategic.BadPatch as error:
            raise status.bad_request(str(error)) from None
        except strategic.NoMergeKey as error:
            raise status.unprocessable(str(error)) from None
    if not isinstance(result, dict):
        raise status.unprocessable("the patch makes no object")
    return result


def _json_patch(item: Object, patch: list[Any]) -> Any:
    import jsonpatch

    try:
        return jsonpatch.JsonPatch(patch).apply(item)
    except jsonpatch.InvalidJsonPatch as error:
        raise status.bad_request(f"error decoding patch: {error}") from None
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, ValueError, KeyError):
        words = "the server rejected our request due to an error in our request"  # the real one tells no more
        raise status.ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", words, {}) from None


def type_of(name: str | None) -> str | None:
    """The type by which an object is patched."""
    return name if name in schema.types() else None
