"""Deployments, ReplicaSets and DaemonSets (pkg/apis/apps/validation)."""

from __future__ import annotations

from labs.cluster.fielderrors import (
    GoText,
    forbidden,
    go_label_selector,
    go_string_map,
    invalid,
    required,
    unsupported,
)
from labs.cluster.resources import Object
from labs.cluster.validation.pods import pod_spec
from labs.cluster.validation.words import Errors, labels


def workload(item: Object) -> Errors:
    spec = item["spec"]
    selector, template = spec.get("selector"), spec["template"]
    replicas = spec.get("replicas", 0)
    if replicas < 0:
        yield invalid("spec.replicas", replicas, "must be greater than or equal to 0")
    if selector is None:
        yield required("spec.selector")
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid("spec.selector", GoText(go_label_selector(selector)), "empty selector is invalid for deployment")
    else:
        yield from labels(selector.get("matchLabels"), "spec.selector.matchLabels")
    found = (template.get("metadata") or {}).get("labels")
    wanted = (selector or {}).get("matchLabels") or {}
    if not wanted.items() <= (found or {}).items():
        shown = GoText(go_string_map(found))
        yield invalid("spec.template.metadata.labels", shown, "`selector` does not match template `labels`")
    yield from labels(found, "spec.template.metadata.labels")
    yield from pod_spec(template["spec"], "spec.template.spec")
    if template["spec"].get("restartPolicy") != "Always":
        yield unsupported("spec.template.spec.restartPolicy", template["spec"].get("restartPolicy"), ("Always",))
    strategy = (spec.get("strategy") or {}).get("type")
    if item["kind"] == "Deployment" and strategy not in ("Recreate", "RollingUpdate"):
        yield unsupported("spec.strategy.type", strategy, ("Recreate", "RollingUpdate"))
    if item["kind"] == "Deployment" and strategy == "Recreate" and spec["strategy"].get("rollingUpdate"):
        yield forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")


def update_workload(item: Object, old: Object) -> Errors:
    selector = item["spec"].get("selector")
    if selector != old["spec"].get("selector"):
        yield invalid("spec.selector", GoText(go_label_selector(selector)), "field is immutable")
