"""Pages, and lists of a moment: what a store remembers, and what the API says of what it does not."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp.test_utils import make_mocked_request

from labs.cluster import store as stores
from labs.cluster.api.paging import INCONSISTENT, TOO_OLD, check_watch
from labs.cluster.api.paths import Target
from labs.cluster.api.reading import list_items
from labs.cluster.api.status import ApiError
from labs.cluster.resources import CONFIGMAPS
from labs.cluster.store import Store

TARGET = Target(CONFIGMAPS)


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": data}


@pytest.fixture
def store() -> Store:
    store = Store()
    for name in "abcde":
        store.create(CONFIGMAPS, config(name))
    return store


def listed(store: Store, **query: Any) -> Any:
    names = {"rv": "resourceVersion", "match": "resourceVersionMatch", "token": "continue"}
    text = urlencode({names.get(name, name): value for name, value in query.items()})
    return list_items(store, make_mocked_request("GET", f"/api/v1/configmaps?{text}"), TARGET)


def names(document: Any) -> str:
    return "".join(item["metadata"]["name"] for item in document["items"])


def refusal(store: Store, **query: Any) -> Any:
    with pytest.raises(ApiError) as caught:
        listed(store, **query)
    return caught.value.body


def test_all_pages_show_the_moment_of_the_first(store: Store) -> None:
    first = listed(store, limit=2)
    assert (names(first), first["metadata"]["remainingItemCount"]) == ("ab", 3)
    store.delete(CONFIGMAPS, "shop", "c")
    store.update(CONFIGMAPS, config("d", x="y"))
    store.create(CONFIGMAPS, config("bb"))
    second = listed(store, limit=2, token=first["metadata"]["continue"])
    assert (names(second), second["items"][1]["data"]) == ("cd", {})
    third = listed(store, limit=2, token=second["metadata"]["continue"])
    assert (names(third), third["metadata"]) == ("e", {"resourceVersion": first["metadata"]["resourceVersion"]})
    assert names(listed(store)) == "abbbde"


def test_a_token_that_is_too_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = listed(store, limit=2)
    for number in range(stores.HISTORY + 1):
        store.update(CONFIGMAPS, config("d", x=str(number)))
    body = refusal(store, limit=2, token=first["metadata"]["continue"])
    assert (body["code"], body["reason"], body["message"]) == (410, "Expired", INCONSISTENT)
    rest = listed(store, token=body["metadata"]["continue"])
    assert (names(rest), rest["items"][1]["data"]) == ("cde", {"x": str(stores.HISTORY)})
    body = refusal(store, rv=first["metadata"]["resourceVersion"], match="Exact")
    assert (body["code"], body["message"]) == (410, TOO_OLD)


def test_versions(store: Store) -> None:
    version = store.version
    store.delete(CONFIGMAPS, "shop", "a")
    assert names(listed(store, rv=version)) == "bcde"  # not older than
    assert names(listed(store, rv=version, match="NotOlderThan")) == "bcde"
    assert names(listed(store, rv=version, match="Exact")) == "abcde"
    assert names(listed(store, rv=version, limit=2)) == "ab"  # with a limit it is exact
    assert names(listed(store, rv=0, limit=2)) == "bcde"  # what is at hand, whole


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        (
            {"match": "Exact"},
            422,
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceV",
        ),
        ({"rv": 0, "match": "Exact"}, 422, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'),
        ({"rv": 1, "match": "x"}, 422, 'Unsupported value: "x": supported values: "Exact", "NotOlderThan", ""'),
        ({"rv": 99}, 504, "Too large resource version: 99, current: 6"),
        ({"rv": "x"}, 400, 'resourceVersion: Invalid value: "x"'),
        ({"limit": "x"}, 400, 'limit: Invalid value: "x"'),
        ({"token": "x"}, 400, "continue key is not valid"),
        ({"token": base64.b64encode(json.dumps({"v": 1}).encode()).decode()}, 400, "continue key is not valid"),
    ],
)
def test_what_makes_no_sense(store: Store, query: dict[str, Any], code: int, words: str) -> None:
    body = refusal(store, **query)
    assert (body["code"], words in body["message"]) == (code, True), body["message"]


def test_a_token_with_a_version(store: Store) -> None:
    token = listed(store, limit=1)["metadata"]["continue"]
    words = "specifying resource version is not allowed when using continue"
    assert refusal(store, token=token, rv=3)["message"] == words


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            ["sendInitialEvents: Forbidden: "],
        ),
        ("sendInitialEvents=false", ["resourceVersionMatch: Forbidden: sendI", "sendInitialEvents: Forbidden: "]),
        (
            "resourceVersionMatch=Exact",
            ["resourceVersionMatch: Forbidden: resourceVersionMatch is"],
        ),
        ("resourceVersion=5", []),
    ],
)
def test_what_a_watch_can_not_be_asked(query: str, words: list[str]) -> None:
    """client-go falls back to list and watch when it is told 422, and would wait for ever when it is told nothing."""
    try:
        check_watch(make_mocked_request("GET", f"/api/v1/pods?watch=1&{query}"))
        causes = []
    except ApiError as error:
        assert error.code == 422
        causes = [f"{one['field']}: {one['message']}" for one in error.body["details"]["causes"]]
    assert [cause[: len(start)] for cause, start in zip(causes, words, strict=True)] == words
