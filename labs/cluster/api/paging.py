"""Lists in pages, and lists of a moment in the past.

Stands for the parameters limit, continue, resourceVersion and resourceVersionMatch of a list
(k8s.io/apiserver/pkg/storage/continue.go, etcd3/store.go and errors.go,
k8s.io/apimachinery/pkg/apis/meta/internalversion/validation). All pages of a list show the moment of the first, for as
long as the store remembers it; then the client is told so, with a token for the rest as it is now. Left out: waiting
for a resourceVersion that is yet to come.

What belongs here: which objects a page has. What does not: their form (`labs.cluster.api.reading`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from http import HTTPStatus

from aiohttp import web

from labs.cluster.api import status
from labs.cluster.api.paths import Target
from labs.cluster.fielderrors import FieldError, Invalid, forbidden, unsupported
from labs.cluster.resources import Object, key_of
from labs.cluster.selectors import Predicate
from labs.cluster.store import Expired, Store

MATCH = "resourceVersionMatch"
EXACT, NOT_OLDER = "Exact", "NotOlderThan"
NOW = -1  # in a token: the rest as it is now, whatever the first page showed
TOO_OLD = "The resourceVersion for the provided list is too old."
INCONSISTENT = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects of a collection, as they were at `version`. `token`: for the next page, "" at the end; `remaining`:
    how many come behind, None when nobody counted."""

    items: list[Object]
    version: int
    token: str = ""
    remaining: int | None = None

    @property
    def metadata(self) -> Object:
        """The metadata of a list that is this page."""
        return {
            "resourceVersion": str(self.version),
            **({"continue": self.token} if self.token else {}),
            **({"remainingItemCount": self.remaining} if self.remaining is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the query says. `version`: whose moment is to be shown, None for now; `after`: the last object that the
    client has seen; `limit`: 0 for none."""

    limit: int
    version: int | None = None
    after: tuple[str, str] | None = None
    counted: bool = False

    @classmethod
    def of(cls, store: Store, request: web.BaseRequest) -> _Wish:
        """Raises ApiError 400, 410, 422 or 504."""
        query = request.query
        version, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
        token, limit = query.get("continue", ""), _number("limit", query.get("limit", "") or "0")
        _check_match(version, match, token)
        wish = cls(max(limit, 0), counted=not query.get("labelSelector") and not query.get("fieldSelector"))
        if token:
            if version not in ("", "0"):
                raise status.bad_request("specifying resource version is not allowed when using continue")
            moment, after = _decode(token)
            return replace(wish, version=None if moment == NOW else moment, after=after)
        if version == "0":
            return replace(wish, limit=0)  # what is at hand, whole: the real one has it from its watch cache
        number = _number("resourceVersion", version or "0")
        if number > store.version:
            raise _too_large(number, store.version)
        exact = match == EXACT or (limit > 0 and not match)
        return replace(wish, version=number if number and exact else None)


def page_of(store: Store, request: web.BaseRequest, target: Target, selected: Predicate) -> Page:
    """The page that a request asks for. Raises ApiError 400, 410, 422 or 504."""
    wish = _Wish.of(store, request)
    version = store.version if wish.version is None else wish.version
    try:
        items = store.list(target.resource.stored, target.namespace, wish.version)
    except Expired:
        message = TOO_OLD if wish.after is None else INCONSISTENT
        raise status.expired(message, None if wish.after is None else _encode(NOW, wish.after)) from None
    if wish.after is not None:
        items = [item for item in items if key_of(item) > wish.after]
    items = [item for item in items if selected(item)]
    if not wish.limit or len(items) <= wish.limit:
        return Page(items, version)
    kept = items[: wish.limit]
    remaining = len(items) - wish.limit if wish.counted else None
    return Page(kept, version, _encode(version, key_of(kept[-1])), remaining)


def check_watch(request: web.BaseRequest) -> None:
    """Raise ApiError 422 for what a watch can't be asked; clients that want a list as a watch then list first."""
    match, asked = request.query.get("resourceVersionMatch", ""), "sendInitialEvents" in request.query
    errors = []
    if asked and match != NOT_OLDER:
        errors.append(forbidden(MATCH, f"sendInitialEvents requires setting resourceVersionMatch to {NOT_OLDER}"))
    if asked:
        words = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        errors.append(forbidden("sendInitialEvents", words))
    elif match:
        words = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        errors.append(forbidden(MATCH, words))
    _refuse(errors)


def _refuse(errors: list[FieldError]) -> None:
    if errors:
        raise status.of_error(Invalid("ListOptions", "", errors, "meta.k8s.io"))


def _check_match(version: str, match: str, token: str) -> None:
    field, errors = MATCH, list[FieldError]()
    if not match:
        return
    if not version:
        errors.append(forbidden(field, f"{field} is forbidden unless resourceVersion is provided"))
    if token:
        errors.append(forbidden(field, f"{field} is forbidden when continue is provided"))
    if match not in (EXACT, NOT_OLDER):
        errors.append(unsupported(field, match, (EXACT, NOT_OLDER, "")))
    if match == EXACT and version == "0":
        errors.append(forbidden(field, f'{field} "exact" is forbidden for resourceVersion "0"'))
    _refuse(errors)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise status.bad_request(f'{name}: Invalid value: "{text}": strconv.ParseInt: invalid syntax') from None


def _encode(version: int, key: tuple[str, str]) -> str:
    document = {"v": "meta.k8s.io/v1", "rv": version, "start": f"{key[0]}/{key[1]}\0"}
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def _decode(token: str) -> tuple[int, tuple[str, str]]:
    """The moment of a token, and the last object before it. Raises ApiError 400."""
    try:
        document = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = document["start"].removesuffix("\0").rpartition("/")
        if document["v"] == "meta.k8s.io/v1" and isinstance(document["rv"], int) and name:
            return document["rv"], (namespace, name)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise status.bad_request("continue key is not valid")


def _too_large(wanted: int, current: int) -> status.ApiError:
    """A moment that is yet to come (k8s.io/apiserver/pkg/storage/errors.go)."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {wanted}, current: {current}"
    details = {"causes": [cause], "retryAfterSeconds": 1}
    return status.ApiError(HTTPStatus.GATEWAY_TIMEOUT, "Timeout", message, details)
