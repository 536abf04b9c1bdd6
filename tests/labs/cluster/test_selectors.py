"""Label and field selectors."""

from __future__ import annotations

import pytest

from labs.cluster.resources import PODS, SERVICES
from labs.cluster.selectors import field_selector, label_selector

POD = {
    "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web", "tier": "front"}},
    "spec": {"nodeName": "node1"},
    "status": {"phase": "Running"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web", True),
        ("app=db", False),
        ("app!=db", True),
        ("other!=x", True),  # absent is different too
        ("app", True),
        ("!app", False),
        ("!other", True),
        ("app in (db, web)", True),
        ("app in (db)", False),
        ("app notin (db),tier=front", True),
        ("app=web,tier=back", False),
        ("other notin (x)", True),
    ],
)
def test_labels(text: str, expected: bool) -> None:
    assert label_selector(text)(POD) is expected


@pytest.mark.parametrize("text", ["=", "app=web=x", "app in", "a b"])
def test_labels_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="unable to parse"):
        label_selector(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metadata.name=a", True),
        ("metadata.name==a,metadata.namespace=shop", True),
        ("metadata.namespace!=shop", False),
        ("spec.nodeName=node1,status.phase!=Failed", True),
        ("spec.schedulerName=", True),  # absent is empty
    ],
)
def test_fields(text: str, expected: bool) -> None:
    assert field_selector(text, PODS)(POD) is expected


def test_fields_that_a_kind_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"field label not supported: spec\.nodeName"):
        field_selector("spec.nodeName=x", SERVICES)
