"""Thousands of Services from the start: the cluster is ready in the time that the rules take, and still answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.labs.lab import Lab

pytestmark = pytest.mark.root

SERVICES = 4000
SERVICE = """---
apiVersion: v1
kind: Service
metadata: {{name: s{0}, namespace: many}}
spec: {{ports: [{{port: 80}}], selector: {{app: x}}}}
"""


def test_a_cluster_with_thousands_of_services(tmp_path: Path, patience: float) -> None:
    manifest = tmp_path / "many.yaml"
    texts = (SERVICE.format(number) for number in range(SERVICES))
    manifest.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: many}\n" + "".join(texts))
    began = time.monotonic()
    with Lab(("-f", str(manifest))) as cluster:
        assert time.monotonic() - began < 60 * patience
        began = time.monotonic()
        services = cluster.status()["services"]
        assert time.monotonic() - began < 3 * patience
        assert len([one for one in services if one["namespace"] == "many"]) == SERVICES
