"""Deployments, ReplicaSets and DaemonSets (pkg/apis/apps/validation)."""

from __future__ import annotations

import json
import re
from typing import Any

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

PERCENT = re.compile(r"[0-9]{1,9}%")
PERCENT_WORDS = (
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for "
    "validation is '[0-9]+%')"
)


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
    if template["spec"].get("activeDeadlineSeconds") is not None:
        kind = "ReplicaSet" if item["kind"] == "Deployment" else item["kind"]
        yield forbidden("spec.template.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported")
    strategy = (spec.get("strategy") or {}).get("type")
    if item["kind"] == "Deployment" and strategy not in ("Recreate", "RollingUpdate"):
        yield unsupported("spec.strategy.type", strategy, ("Recreate", "RollingUpdate"))
    if item["kind"] == "Deployment" and strategy == "Recreate" and spec["strategy"].get("rollingUpdate"):
        yield forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    if item["kind"] == "Deployment" and strategy == "RollingUpdate":
        yield from _rolling_deployment(spec["strategy"].get("rollingUpdate") or {}, "spec.strategy.rollingUpdate")
    if item["kind"] == "DaemonSet":
        yield from _rolling_daemonset(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    yield from _seconds_and_history(item["kind"], spec)


def _seconds_and_history(kind: str, spec: Object) -> Errors:
    for field in ("minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"):
        if spec.get(field, 0) < 0:
            yield invalid(f"spec.{field}", spec[field], "must be greater than or equal to 0")
    deadline = spec.get("progressDeadlineSeconds", 0)
    if kind == "Deployment" and deadline <= spec.get("minReadySeconds", 0):
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def _rolling_deployment(rolling: Object, field: str) -> Errors:
    unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
    yield from _amount(unavailable, f"{field}.maxUnavailable")
    yield from _amount(surge, f"{field}.maxSurge")
    if _number(unavailable) == 0 and _number(surge) == 0:
        yield invalid(f"{field}.maxUnavailable", _go_amount(unavailable), "may not be 0 when `maxSurge` is 0")
    yield from _at_most_all(unavailable, f"{field}.maxUnavailable")


def _rolling_daemonset(strategy: Object, field: str) -> Errors:
    kind = strategy.get("type")
    if kind not in ("OnDelete", "RollingUpdate"):
        yield unsupported(f"{field}.type", kind, ("OnDelete", "RollingUpdate"))
    if kind != "RollingUpdate":
        return
    field, rolling = f"{field}.rollingUpdate", strategy.get("rollingUpdate") or {}
    unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
    for name, value in (("maxUnavailable", unavailable), ("maxSurge", surge)):
        yield from _amount(value, f"{field}.{name}")
        yield from _at_most_all(value, f"{field}.{name}")
    if _number(unavailable) != 0 and _number(surge) != 0:
        yield invalid(f"{field}.maxSurge", _go_amount(surge), "may not be set when maxUnavailable is non-zero")
    elif _number(unavailable) == 0 and _number(surge) == 0:
        yield required(f"{field}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def _amount(value: Any, field: str) -> Errors:
    """A number of pods, or a share of all (ValidatePositiveIntOrPercent)."""
    if isinstance(value, str) and PERCENT.fullmatch(value) is None:
        yield invalid(field, _go_amount(value), PERCENT_WORDS)
    elif isinstance(value, int) and value < 0:
        yield invalid(field, value, "must be greater than or equal to 0")


def _at_most_all(value: Any, field: str) -> Errors:
    if isinstance(value, str) and _number(value) > 100:
        yield invalid(field, _go_amount(value), "must not be greater than 100%")


def _number(value: Any) -> int:
    if isinstance(value, str):
        return int(value[:-1]) if PERCENT.fullmatch(value) else 0
    return int(value or 0)


def _go_amount(value: Any) -> GoText:
    """An IntOrString as Go's `%#v` prints it."""
    is_text = isinstance(value, str)
    number, text = 0 if is_text else value or 0, json.dumps(value if is_text else "")
    return GoText(f"intstr.IntOrString{{Type:{int(is_text)}, IntVal:{number}, StrVal:{text}}}")


def update_workload(item: Object, old: Object) -> Errors:
    selector = item["spec"].get("selector")
    if selector != old["spec"].get("selector"):
        yield invalid("spec.selector", GoText(go_label_selector(selector)), "field is immutable")
