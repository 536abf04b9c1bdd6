"""What the API says when it does not give an object: Status objects, with the codes and reasons of the real one.

Stands for k8s.io/apimachinery/pkg/api/errors.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from labs.cluster.admission import Forbidden, NoNamespace, Terminating
from labs.cluster.fielderrors import Invalid, unsupported
from labs.cluster.resources import Resource
from labs.cluster.store import AlreadyExists, Conflict, NotFound
from tracer.errors import K8snetError


class ApiError(Exception):
    """Ends a request with a Status object."""

    def __init__(self, code: HTTPStatus, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({"details": details} if details is not None else {}),
            "code": int(code),
        }


def unauthorized() -> ApiError:
    """Nobody, as far as we can tell."""
    return ApiError(HTTPStatus.UNAUTHORIZED, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: Resource | None, namespace: str, name: str, path: str) -> ApiError:
    """Somebody, who may not."""
    if resource is None:
        message = f'forbidden: User "{user}" cannot {verb} path "{path}"'
        return ApiError(HTTPStatus.FORBIDDEN, "Forbidden", message, {})
    scope = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
    named = f' "{name}"' if name else ""
    message = (
        f'{resource.qualified}{named} is forbidden: User "{user}" cannot {verb} resource "{resource.plural}" '
        f'in API group "{resource.group}"{scope}'
    )
    return ApiError(
        HTTPStatus.FORBIDDEN, "Forbidden", message, {"name": name, "group": resource.group, "kind": resource.plural}
    )


def may_not_impersonate(user: str, name: str) -> ApiError:
    """Somebody who wants to be somebody else, and may not."""
    words = f'User "{user}" cannot impersonate resource "users" in API group "" at the cluster scope'
    message = f'users "{name}" is forbidden: {words}'
    return ApiError(HTTPStatus.FORBIDDEN, "Forbidden", message, {"name": name, "kind": "users"})


def not_found(resource: Resource, name: str) -> ApiError:
    """No such object."""
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return ApiError(HTTPStatus.NOT_FOUND, "NotFound", f'{resource.qualified} "{name}" not found', details)


def no_such_path() -> ApiError:
    """No such kind or subresource."""
    return ApiError(HTTPStatus.NOT_FOUND, "NotFound", "the server could not find the requested resource", {})


def not_allowed() -> ApiError:
    """A method that this path does not have."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed", message, {})


def bad_request(message: str) -> ApiError:
    """Something that makes no sense."""
    return ApiError(HTTPStatus.BAD_REQUEST, "BadRequest", message)


def bad_options(field: str, value: str, known: tuple[str, ...]) -> ApiError:
    """A parameter of the query that is none of a few words."""
    return of_error(Invalid("Options", "", [unsupported(field, value, known)], "meta.k8s.io"))


def too_large(limit: int, words: str = "") -> ApiError:
    """More than we read."""
    message = words or f"Request entity too large: limit is {limit}"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestEntityTooLarge", message)


def unsupported_media_type(known: tuple[str, ...]) -> ApiError:
    """A body in a form that we don't read."""
    message = (
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(sorted(known))}"
    )
    return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)


def conflict(resource: Resource, name: str, message: str) -> ApiError:
    """Not the object that the client thinks it is."""
    return of_error(Conflict(message), resource, name)


def unprocessable(message: str) -> ApiError:
    """A patch that does not fit."""
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", message)


def expired(message: str, token: str | None = None) -> ApiError:
    """A resourceVersion that is forgotten. `token`: with which the client can go on nevertheless."""
    error = ApiError(HTTPStatus.GONE, "Expired", message)
    if token is not None:
        error.body["metadata"] = {"continue": token}
    return error


def apply_conflict(rivals: list[tuple[dict[str, Any], tuple[str, ...]]]) -> ApiError:
    """Fields that somebody else wants with other values: an entry of managedFields and a path for each
    (managedfields/internal/conflict.go)."""
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {_manager(entry)}", "field": _dotted(path)}
        for entry, path in rivals
    ]
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        fields: dict[str, list[str]] = {}
        for entry, path in rivals:
            fields.setdefault(_manager(entry), []).append(f"- {_dotted(path)}")
        told = [f"conflicts with {manager}:\n" + "\n".join(fields[manager]) for manager in sorted(fields)]
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(told)
    return ApiError(HTTPStatus.CONFLICT, "Conflict", message, {"causes": causes})


def _manager(entry: dict[str, Any]) -> str:
    """A manager as people are told of it."""
    text = json.dumps(entry.get("manager", ""))
    if entry.get("subresource"):
        text += f' with subresource "{entry["subresource"]}"'
    return f"{text} using {entry.get('apiVersion')}" if entry.get("operation") == "Update" else text


def _dotted(path: tuple[str, ...]) -> str:
    """A path of managedFields as people read it: .spec.template.spec.containers[name="web"].image."""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += f".{step[2:]}"
        elif step.startswith("k:"):
            pairs = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(step[2:]).items())
            text += f"[{pairs}]"
        elif step.startswith("v:"):
            text += f"[={step[2:]}]"
    return text


def success(details: dict[str, Any]) -> dict[str, Any]:
    """What a deletion answers when nothing is left to show."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def of_error(error: K8snetError, resource: Resource | None = None, name: str = "") -> ApiError:
    """The answer for an error of the store or of admission (k8s.io/apimachinery/pkg/api/errors)."""
    details = {"name": name, "group": resource.group, "kind": resource.plural} if resource else {}
    match error:
        case Invalid():
            causes = [{"reason": one.reason, "message": one.words, "field": one.field} for one in error.errors]
            told = {"name": error.name, "group": error.group, "kind": error.kind, "causes": causes}
            return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", error.message, told)
        case NoNamespace():
            told = {"name": error.name, "kind": "namespaces"}
            return ApiError(HTTPStatus.NOT_FOUND, "NotFound", error.message, told)
        case Forbidden():
            reasons = {"causes": error.causes} if error.causes else {}
            return ApiError(HTTPStatus.FORBIDDEN, "Forbidden", error.message, {**details, **reasons})
        case Terminating():
            return ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed", error.message, details)
        case NotFound():
            return ApiError(HTTPStatus.NOT_FOUND, "NotFound", error.message, details)
        case AlreadyExists():
            return ApiError(HTTPStatus.CONFLICT, "AlreadyExists", error.message, details)
        case Conflict():
            return ApiError(HTTPStatus.CONFLICT, "Conflict", error.message, details)
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"Internal error occurred: {error.message}", details
    )
