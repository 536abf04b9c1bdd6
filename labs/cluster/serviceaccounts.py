"""Gives every pod the volume with its service account's token, and mounts it in all containers.

Stands for the mounting half of the admission plugin ServiceAccount (plugin/pkg/admission/serviceaccount): the projected
volume kube-api-access-XXXXX. Not here: refusing pods that name a missing account (`labs.cluster.admission`).
"""

from __future__ import annotations

import random

from labs.cluster.certificates import EXTENDED
from labs.cluster.namespaces import ROOT_CA
from labs.cluster.resources import SERVICEACCOUNTS, Object
from labs.cluster.store import Store

PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
MIRROR = "kubernetes.io/config.mirror"  # such pods have nobody to speak for
LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def mount_token(store: Store, pod: Object) -> None:
    """Add the volume to a new pod, unless it or its account does not want one."""
    spec, metadata = pod["spec"], pod["metadata"]
    account = store.find(SERVICEACCOUNTS, metadata["namespace"], spec["serviceAccountName"]) or {}
    wants = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
    everyone = [*(spec.get("initContainers") or ()), *spec["containers"]]
    lacking = [one for one in everyone if PLACE not in (mount["mountPath"] for mount in one.get("volumeMounts") or ())]
    if not wants or not lacking or MIRROR in (metadata.get("annotations") or {}):
        return
    name = f"kube-api-access-{''.join(random.choices(LETTERS, k=5))}"
    for container in lacking:
        mount = {"name": name, "readOnly": True, "mountPath": PLACE}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    spec["volumes"] = [*(spec.get("volumes") or ()), _volume(name)]


def _volume(name: str) -> Object:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": EXTENDED, "path": "token"}},
        {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": name, "projected": {"defaultMode": 420, "sources": sources}}
