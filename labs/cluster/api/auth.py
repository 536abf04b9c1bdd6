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
ACCOUNT = "system:serviceaccount:"
READING = frozenset({"get", "list", "watch"})
DISCOVERY = (
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
)

Words = tuple[str, ...]


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


def impersonated(request: web.BaseRequest, user: User) -> User:
    """The user as whom `user` asks (`kubectl --as`), which is himself when he says nothing. Raises ApiError 403."""
    name = request.headers.get("Impersonate-User", "")
    groups = request.headers.getall("Impersonate-Group", [])
    if not name and not groups:
        return user
    if MASTERS not in user.groups:
        raise status.may_not_impersonate(user.name, name)
    if not groups and name.startswith(ACCOUNT):
        namespace = name.removeprefix(ACCOUNT).partition(":")[0]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
    return User(name, frozenset(groups))


def authorize(user: User, verb: str, resource: Resource | None, namespace: str, name: str, path: str) -> None:
    """Raise ApiError 403 unless `user` may `verb` that. `resource` is None for discovery and the like."""
    if not may(user, verb, about_objects=resource is not None):
        raise status.forbidden(user.name, verb, resource, namespace, name, path)


def may(user: User, verb: str, *, about_objects: bool) -> bool:
    """Whether `user` may `verb` objects, or else paths such as discovery's."""
    if MASTERS in user.groups:
        return True
    if not about_objects:
        return verb == "get"
    return COMPONENTS in user.groups and verb in READING


def rules(user: User) -> tuple[list[tuple[Words, Words, Words]], list[tuple[Words, Words]]]:
    """The same as rules: verbs, API groups and resources; then verbs and paths. The last ones are those of
    system:basic-user and system:discovery, which everybody has."""
    about_objects: list[tuple[Words, Words, Words]] = []
    others: list[tuple[Words, Words]] = []
    if MASTERS in user.groups:
        about_objects.append((("*",), ("*",), ("*",)))
        others.append((("*",), ("*",)))
    elif COMPONENTS in user.groups:
        about_objects.append((tuple(sorted(READING)), ("*",), ("*",)))
    access = ("selfsubjectaccessreviews", "selfsubjectrulesreviews")
    about_objects.append((("create",), ("authorization.k8s.io",), access))
    about_objects.append((("create",), ("authentication.k8s.io",), ("selfsubjectreviews",)))
    others.append((("get",), DISCOVERY))
    return about_objects, others
