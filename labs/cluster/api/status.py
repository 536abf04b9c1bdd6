"""What the API says when it does not give an object: Status objects, with the codes and reasons of the real one.

Stands for k8s.io/apimachinery/pkg/api/errors.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from labs.cluster.resources import Resource


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
            **({"details": details} if details else {}),
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


def not_found(resource: Resource, name: str) -> ApiError:
    """No such object."""
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return ApiError(HTTPStatus.NOT_FOUND, "NotFound", f'{resource.qualified} "{name}" not found', details)


def no_such_path() -> ApiError:
    """No such kind or subresource."""
    return ApiError(HTTPStatus.NOT_FOUND, "NotFound", "the server could not find the requested resource", {})


def not_allowed() -> ApiError:
    """A write: there are none yet."""
    message = "the server does not allow this method on the requested resource (k8snet's API is read-only so far)"
    return ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed", message, {})


def bad_request(message: str) -> ApiError:
    """Parameters that make no sense."""
    return ApiError(HTTPStatus.BAD_REQUEST, "BadRequest", message)


def expired(message: str) -> ApiError:
    """A resourceVersion that is forgotten."""
    return ApiError(HTTPStatus.GONE, "Expired", message)
