"""What the API says of itself: its version, groups, and kinds.

Stands for /version, /api, /apis (k8s.io/apiserver/pkg/endpoints/discovery). The form in which all of it is one answer
is in `labs.cluster.api.aggregated`.
"""

from __future__ import annotations

import platform
import re
from typing import Any

from labs.cluster.api import health, reviews
from labs.cluster.api.paths import subresources_of
from labs.cluster.kinds import Kinds
from labs.cluster.resources import NAMESPACES, Resource

GIT_VERSION = "v1.30.5"  # the version whose behaviour this cluster follows
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUBRESOURCE_VERBS = {
    "status": ["get", "patch", "update"],
    "scale": ["get", "patch", "update"],
    "eviction": ["create"],
    "token": ["create"],
    "proxy": ["create", "delete", "get", "patch", "update"],
    "finalize": ["update"],
    "log": ["get"],
    "exec": ["create", "get"],
    "attach": ["create", "get"],
    "portforward": ["create", "get"],
}


def version() -> dict[str, str]:
    """/version. `gitVersion` says which Kubernetes this stands for; `platform` tells that it is not the real one."""
    major, minor, _ = GIT_VERSION.removeprefix("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"{GIT_VERSION}+k8snet",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": f"linux/{architecture()}",
    }


def architecture() -> str:
    """The machine's architecture, as Go calls it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def document(kinds: Kinds, path: str, server: str) -> dict[str, Any] | None:
    """The discovery document at `path`, or None. `server`: host and port under which clients reach us."""
    groups = _groups(kinds)
    if path == "/":
        return {"paths": _paths(groups)}
    if path == "/api":
        addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*group) for group in groups.items()]}
    name = path.removeprefix("/apis/")
    if name in groups:
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, groups[name])}
    found = [resource for resource in kinds.served() if resource.prefix == path]
    if found:
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": found[0].api_version,
            "resources": [entry for kind in found for entry in _entries(kind)],
        }
    return reviews.document(path)


def _paths(groups: dict[str, list[str]]) -> list[str]:
    """All that there is, in order."""
    versions = [f"/apis/{name}/{version}" for name, known in groups.items() for version in known]
    checks = [f"/{name}{check}" for name in health.WHOLE for check in ("", *(f"/{one}" for one in health.CHECKS))]
    others = ("/api", "/api/v1", "/apis", "/openapi/v2", "/openapi/v3", "/version")
    return sorted([*others, *(f"/apis/{name}" for name in groups), *versions, *checks])


def _groups(kinds: Kinds) -> dict[str, list[str]]:
    """The versions of each group, the best one first."""
    found: dict[str, set[str]] = {}
    for resource in kinds.served():
        if resource.group:
            found.setdefault(resource.group, set()).add(resource.version)
    served = {group: sorted(versions, key=rank) for group, versions in found.items()} | reviews.groups()
    return {group: served[group] for group in sorted(served)}


def rank(version: str) -> tuple[int, int, int, str]:
    """By which versions are sorted: stable ones first, then betas, then alphas, each with the newest first, then what
    is no version of Kubernetes' form (k8s.io/apimachinery/pkg/version, CompareKubeAwareVersionStrings)."""
    match = re.fullmatch(r"v([1-9]\d*)(?:(alpha|beta)([1-9]\d*))?", version)
    if match is None:
        return 3, 0, 0, version
    return {None: 0, "beta": 1, "alpha": 2}[match[2]], -int(match[1]), -int(match[3] or 0), ""


def _group(name: str, versions: list[str]) -> dict[str, Any]:
    entries = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def _entries(resource: Resource) -> list[dict[str, Any]]:
    """A kind and its subresources."""
    entry = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": [verb for verb in VERBS if resource != NAMESPACES or verb != "deletecollection"],
        **({"shortNames": list(resource.short)} if resource.short else {}),
        **({"categories": list(resource.categories)} if resource.categories else {}),
    }
    return [entry, *(_subresource(resource, name) for name in subresources_of(resource) if name in _SUBRESOURCE_VERBS)]


def _subresource(resource: Resource, name: str) -> dict[str, Any]:
    group, version, kind = {
        "scale": ("autoscaling", "v1", "Scale"),
        "eviction": ("policy", "v1", "Eviction"),
        "token": ("authentication.k8s.io", "v1", "TokenRequest"),
        "exec": ("", "", "PodExecOptions"),
        "attach": ("", "", "PodAttachOptions"),
        "portforward": ("", "", "PodPortForwardOptions"),
        "proxy": ("", "", f"{resource.kind}ProxyOptions"),
    }.get(name, ("", "", resource.kind))
    return {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        **({"group": group, "version": version} if group else {}),
        "kind": kind,
        "verbs": _SUBRESOURCE_VERBS[name],
    }
