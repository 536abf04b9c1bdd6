"""Questions about the one who asks: who am I, may I do this, what may I do (`kubectl auth whoami`, `can-i`).

Stands for pkg/registry/authentication/selfsubjectreview and pkg/registry/authorization (selfsubjectaccessreview,
selfsubjectrulesreview). They are asked with POST, answered at once and kept nowhere. Left out: reviews of others
(SubjectAccessReview, TokenReview).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labs.cluster.api import auth, status
from labs.cluster.api.auth import User

Answer = Callable[[User, dict[str, Any]], dict[str, Any]]


def document(path: str) -> dict[str, Any] | None:
    """What discovery says of the group version at `path`; None for another path."""
    kinds = [(plural, kind) for (prefix, plural), (kind, _) in _REVIEWS.items() if prefix == path]
    if not kinds:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": path.removeprefix("/apis/"),
        "resources": [
            {"name": plural, "singularName": kind.lower(), "namespaced": False, "kind": kind, "verbs": ["create"]}
            for plural, kind in kinds
        ],
    }


def groups() -> dict[str, list[str]]:
    """The API groups of the reviews, with their versions."""
    paths = sorted({prefix.removeprefix("/apis/") for prefix, _ in _REVIEWS})
    return {group: [version] for group, _, version in (path.partition("/") for path in paths)}


def is_review(path: str) -> bool:
    """Whether a path is that of a review."""
    return _split(path) in _REVIEWS


def review(path: str, user: User, question: Any) -> dict[str, Any]:
    """The answer to `question`, the object that was sent to `path`. Raises ApiError 400 or 422."""
    prefix, plural = _split(path)
    kind, answer = _REVIEWS[prefix, plural]
    if not isinstance(question, dict) or question.get("kind", kind) != kind:
        raise status.bad_request(f"the object provided is unrecognized (must be of type {kind})")
    spec = question.get("spec")
    asked: dict[str, Any] = spec if isinstance(spec, dict) else {}
    return {
        "kind": kind,
        "apiVersion": prefix.removeprefix("/apis/"),
        "metadata": {"creationTimestamp": None},
        **({"spec": asked} if "spec" in question else {}),
        "status": answer(user, asked),
    }


def _split(path: str) -> tuple[str, str]:
    prefix, _, plural = path.rpartition("/")
    return prefix, plural


def _who(user: User, _: dict[str, Any]) -> dict[str, Any]:
    return {"userInfo": {"username": user.name, "groups": sorted(user.groups | {"system:authenticated"})}}


def _access(user: User, spec: dict[str, Any]) -> dict[str, Any]:
    resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (resource is None) == (other is None):
        words = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise status.unprocessable(f'SelfSubjectAccessReview.authorization.k8s.io "" is invalid: spec: {words}')
    asked: dict[str, Any] = resource or other or {}
    return {"allowed": auth.may(user, str(asked.get("verb", "")), about_objects=resource is not None)}


def _rules(user: User, _: dict[str, Any]) -> dict[str, Any]:
    """What the ClusterRoles that matter here say, those that everybody has last."""
    about_objects, others = auth.rules(user)
    return {
        "resourceRules": [
            {"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)}
            for verbs, groups, resources in about_objects
        ],
        "nonResourceRules": [{"verbs": list(verbs), "nonResourceURLs": list(urls)} for verbs, urls in others],
        "incomplete": False,
    }


_REVIEWS: dict[tuple[str, str], tuple[str, Answer]] = {
    ("/apis/authentication.k8s.io/v1", "selfsubjectreviews"): ("SelfSubjectReview", _who),
    ("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"): ("SelfSubjectAccessReview", _access),
    ("/apis/authorization.k8s.io/v1", "selfsubjectrulesreviews"): ("SelfSubjectRulesReview", _rules),
}
