"""Manifests: those that every cluster starts with, and reading a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from labs.cluster.resources import Object
from tracer.errors import FormatError

SERVICE_PROXIES = {"iptables": "kube-proxy.yaml", "nftables": "kube-proxy.yaml", "ebpf": "service-lb.yaml"}


def starting_texts(proxy: str) -> list[str]:
    """The texts of what a cluster with that proxy mode starts with, in the order in which they are to be applied."""
    names = ("system.yaml", SERVICE_PROXIES[proxy], "gateway.yaml", "workload.yaml")
    return [(Path(__file__).parent / name).read_text() for name in names]


def parse(text: str, name: str = "manifest") -> list[Object]:
    """The objects of a manifest: YAML documents or JSON, Lists taken apart. Raises FormatError, naming the line."""
    try:
        documents = list(yaml.load_all(text, Loader=_loader()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise FormatError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    objects: list[Object] = []
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise FormatError(f"{name}: every document must be an object with apiVersion and kind")
        is_list = document["kind"].endswith("List") and isinstance(document.get("items"), list)
        objects += document["items"] if is_list else [document]
    return objects


def _loader() -> Any:
    """libyaml's loader where PyYAML was built with it: ten times as fast."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
