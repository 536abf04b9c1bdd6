"""The columns of `kubectl get`: the server turns objects into tables, kubectl only prints them.

Stands for k8s.io/apiserver's table convertor (pkg/registry/rest/table.go) and for that of custom resources. Which
columns the built-in kinds have is in `labs.cluster.api.printers`.
"""

from __future__ import annotations

from typing import Any

from labs.cluster.api.ages import ago
from labs.cluster.api.printers import printer
from labs.cluster.extensions.columns import cell
from labs.cluster.extensions.columns import shown as shown_columns
from labs.cluster.extensions.structural import in_version
from labs.cluster.resources import Object, Resource


def table(resource: Resource, items: list[Object], version: str, include: str = "Metadata") -> dict[str, Any]:
    """A Table of objects. `include`: what each row carries of its object: Metadata, Object or None."""
    if resource.custom is not None:
        return _custom_table(resource, items, version, include)
    columns, cells = printer(resource.kind)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [_definition(column) for column in columns],
        "rows": [{"cells": cells(item), "object": _carried(item, include)} for item in items],
    }


def _custom_table(resource: Resource, items: list[Object], version: str, include: str) -> dict[str, Any]:
    """A Table with the columns that the definition of the kind names."""
    assert resource.custom is not None
    columns = shown_columns(resource.custom.columns)
    named = [
        {
            "name": column["name"],
            "type": column["type"],
            "format": column.get("format", ""),
            "description": column.get("description", ""),
            "priority": column.get("priority", 0),
        }
        for column in columns
    ]
    name = {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}
    rows = []
    for item in items:
        shown = in_version(resource, item)
        cells = [item["metadata"]["name"], *(cell(shown, column, ago) for column in columns)]
        rows.append({"cells": cells, "object": _carried(shown, include)})
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [name, *named],
        "rows": rows,
    }


def _definition(column: str) -> dict[str, Any]:
    """A column from its short form: "Name", "IP+" (wide only), "Restarts#" (a number)."""
    wide, number = column.endswith("+"), column.endswith("#")
    name = column.rstrip("+#")
    return {
        "name": name,
        "type": "integer" if number else "string",
        "format": "name" if name == "Name" else "",
        "description": "",
        "priority": 1 if wide else 0,
    }


def _carried(item: Object, include: str) -> Any:
    if include == "None":
        return None
    if include == "Object":
        return item
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}
