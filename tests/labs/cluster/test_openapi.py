"""The API's documents of its own types, without a network."""

from __future__ import annotations

import pytest

from labs.cluster import schema
from labs.cluster.api.openapi import GVK, OpenApi
from labs.cluster.kinds import Kinds
from labs.cluster.resources import ALL, Resource


@pytest.mark.parametrize("resource", ALL, ids=lambda resource: resource.qualified)
def test_every_kind_has_a_type_and_is_described(resource: Resource) -> None:
    assert schema.type_name(resource) is not None, "name it in tests/labs/write_schema.py, and run scripts/schema"
    document = OpenApi(Kinds()).group(resource.prefix)
    assert document is not None
    described = [kind for one in document["components"]["schemas"].values() for kind in one.get(GVK, ())]
    assert {"group": resource.group, "version": resource.version, "kind": resource.kind} in described


def test_the_documents_are_made_again_when_kinds_come() -> None:
    kinds = Kinds()
    documents = OpenApi(kinds)
    assert documents.group("/apis/example.org/v1") is None
    before = documents.swagger_as_protobuf()
    assert documents.index() == documents.index()
    kinds.define("x", (Resource("apps", "v1", "deployments2", "d", "Deployment", True),))
    assert len(documents.swagger_as_protobuf()) > len(before)
