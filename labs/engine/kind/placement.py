"""Where the pods that lessons start from are: the client on node1, those of a Deployment on all nodes.

The miniature cluster's scheduler puts them there; that of Kubernetes weighs more, and need not.

What belongs here: saying so in manifests. What does not: applying them.
"""

from __future__ import annotations

from typing import Any

import yaml


def placed(text: str, node1: str) -> str:
    """A manifest in which pods are on the node `node1`, and the pods of each Deployment spread evenly."""
    documents = [one for one in yaml.safe_load_all(text) if one]
    for document in documents:
        if document["kind"] == "Pod":
            document["spec"].setdefault("nodeName", node1)
        elif document["kind"] == "Deployment":
            template = document["spec"]["template"]
            template["spec"].setdefault("topologySpreadConstraints", [_evenly(template["metadata"]["labels"])])
    return yaml.safe_dump_all(documents, sort_keys=False)


def _evenly(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
