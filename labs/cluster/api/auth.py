"""Who asks, and what they may do.

Stands for the API server's authentication (x509 and service-account tokens; anonymous requests are off) and for RBAC
with the bindings that matter here: system:masters may do everything; service accounts of kube-system may read
everything, as the components' ClusterRoles let them; other service accounts may read discovery only. Left out: Role
objects.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.certificates import TokenIssuer
from labs.cluster.resources import Resource

MASTERS = "system:masters"
COMPONENTS = "system:serviceaccounts:kube-system"
READING = frozenset({"get", "list", "watch"})


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str
    groups: frozenset[str]


def authenticate(request: web.BaseRequest, tokens: TokenIssuer) -> User:
    """The user behind a request: the subject of the client's certificate, else of its token. Raises ApiError 401."""
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    if certificate:
        subject = {key: value for part in certificate["subject"] for key, value in part}
        groups = {value for part in certificate["subject"] for key, value in part if key == "organizationName"}
        return User(subject.get("commonName", ""), frozenset(groups))
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        name = tokens.user(token.strip())
        if name is not None:
            namespace = name.split(":")[2]
            return User(name, frozenset({"system:serviceaccounts", f"system:serviceaccounts:{namespace}"}))
    raise status.unauthorized()


def authorize(user: User, verb: str, resource: Resource | None, namespace: str, name: str, path: str) -> None:
    """Raise ApiError 403 unless `user` may `verb` that. `resource` is None for discovery and the like."""
    if MASTERS in user.groups:
        return
    if resource is None and verb == "get":
        return
    if COMPONENTS in user.groups and verb in READING:
        return
    raise status.forbidden(user.name, verb, resource, namespace, name, path)
