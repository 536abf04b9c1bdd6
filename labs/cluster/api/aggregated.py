"""Discovery in one answer: all groups, versions and kinds at /api and /apis, for clients that ask so.

Stands for k8s.io/apiserver/pkg/endpoints/discovery/aggregated (apidiscovery.k8s.io v2, and v2beta1, which has the same
form). kubectl asks for it from 1.26 on, and makes two requests instead of one for each version. Left out: ETags.
"""

from __future__ import annotations

from typing import Any

from labs.cluster.api import discovery
from labs.cluster.kinds import Kinds

GROUP, FORM = "apidiscovery.k8s.io", "APIGroupDiscoveryList"
VERSIONS = ("v2", "v2beta1")


def wanted(path: str, accept: str) -> str | None:
    """The version of the aggregated form that a client wants before all others that we have; None for none."""
    if path not in ("/api", "/apis"):
        return None
    for choice in accept.split(","):
        media_type, *parameters = (part.strip() for part in choice.split(";"))
        named = dict(part.partition("=")[::2] for part in parameters)
        if media_type not in ("application/json", "*/*"):
            continue
        if not named.get("as"):
            return None  # the plain form
        if (named.get("g"), named["as"]) == (GROUP, FORM) and named.get("v") in VERSIONS:
            return named["v"]
    return None


def content_type(version: str) -> str:
    """The media type by which clients know that they got what they asked for."""
    return f"application/json;g={GROUP};v={version};as={FORM}"


def document(kinds: Kinds, path: str, version: str) -> dict[str, Any]:
    """All groups at /apis, or the core group at /api."""
    if path == "/api":
        items = [{"metadata": {"creationTimestamp": None}, "versions": [_version(kinds, "/api/v1", "v1")]}]
    else:
        listed = discovery.document(kinds, "/apis", "") or {}
        items = [_group(kinds, group) for group in listed["groups"]]
    return {"kind": FORM, "apiVersion": f"{GROUP}/{version}", "metadata": {}, "items": items}


def _group(kinds: Kinds, group: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": group["name"], "creationTimestamp": None},
        "versions": [
            _version(kinds, f"/apis/{entry['groupVersion']}", entry["version"]) for entry in group["versions"]
        ],
    }


def _version(kinds: Kinds, path: str, version: str) -> dict[str, Any]:
    """A version's kinds, each with its subresources."""
    listed = discovery.document(kinds, path, "") or {}
    group, _, _ = listed["groupVersion"].rpartition("/")
    resources: list[dict[str, Any]] = []
    for entry in listed["resources"]:
        plural, _, subresource = entry["name"].partition("/")
        kind = {
            "group": entry.get("group", group),
            "version": entry.get("version", version),
            "kind": entry["kind"],
        }
        if subresource:
            part = {"subresource": subresource, "responseKind": kind, "verbs": entry["verbs"]}
            resources[-1].setdefault("subresources", []).append(part)
            continue
        resources.append(
            {
                "resource": plural,
                "responseKind": kind,
                "scope": "Namespaced" if entry["namespaced"] else "Cluster",
                "singularResource": entry["singularName"],
                "verbs": entry["verbs"],
                **{key: entry[key] for key in ("shortNames", "categories") if key in entry},
            }
        )
    return {"version": version, "resources": resources, "freshness": "Current"}
