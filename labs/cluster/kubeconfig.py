"""The kubeconfig that lets kubectl into a cluster. Stands for /etc/kubernetes/admin.conf as kubeadm writes it."""

from __future__ import annotations

import base64

import yaml

from labs.cluster.certificates import KeyPair


def render(cluster: str, server: str, authority: bytes, client: KeyPair) -> str:
    """The text of a kubeconfig, everything inside it. `authority`: the authority's certificate, PEM."""
    context = f"k8snet-{cluster}" if cluster != "k8snet" else "k8snet"
    user = {"client-certificate-data": _base64(client.certificate), "client-key-data": _base64(client.key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": context, "cluster": {"certificate-authority-data": _base64(authority), "server": server}}
        ],
        "users": [{"name": context, "user": user}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
        "preferences": {},
    }
    return yaml.safe_dump(document, sort_keys=False)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
