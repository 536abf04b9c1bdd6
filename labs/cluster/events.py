"""Events: what components tell of what they do, for `kubectl describe` and `kubectl get events`.

Stands for client-go's event recorder and correlator (tools/record) and for the hour after which the API server forgets
an Event. The same words about the same object are one Event that counts. Also the two forms of an Event, of which
one is stored. Left out: rate limits, and series of our own (those of others are kept and shown).
"""

from __future__ import annotations

import datetime
import time

from labs.cluster.resources import EVENTS, Object, Resource, key_of
from labs.cluster.store import AlreadyExists, NotFound, Store, now

NORMAL, WARNING = "Normal", "Warning"
LIFETIME = datetime.timedelta(hours=1)
MOST = 2000


class Recorder:
    """Writes the Events of one component. `host`: the node that it runs on, "" for the control plane's."""

    def __init__(self, store: Store, component: str, host: str = "") -> None:
        self._store = store
        self._component = component
        self._host = host
        self._known: dict[tuple[str, ...], tuple[str, str]] = {}  # what was said -> the Event's key

    def normal(self, item: Object, reason: str, message: str, field: str = "") -> None:
        """Tell of something as it should be. `field`: the part of the object, such as spec.containers{web}."""
        self._record(item, NORMAL, reason, message, field)

    def warning(self, item: Object, reason: str, message: str, field: str = "") -> None:
        """Tell of something that somebody should look at."""
        self._record(item, WARNING, reason, message, field)

    def _record(self, item: Object, kind: str, reason: str, message: str, field: str) -> None:
        said = (item["metadata"]["uid"], kind, reason, message, field)
        known = self._known.get(said)
        event = self._store.find(EVENTS, *known) if known else None
        if event is not None:
            self._store.update(EVENTS, {**event, "count": event["count"] + 1, "lastTimestamp": now()})
            return
        namespace, name = key_of(item)
        moment = now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{time.time_ns():x}", "namespace": namespace or "default"},
            "involvedObject": _reference(item, field),
            "reason": reason,
            "message": message,
            "source": {"component": self._component, **({"host": self._host} if self._host else {})},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
            "type": kind,
            "eventTime": None,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }
        try:
            self._store.create(EVENTS, event)
        except AlreadyExists:
            return  # the same nanosecond: one of them is enough
        if len(self._known) > MOST:
            self._known.clear()
        self._known[said] = key_of(event)


def _reference(item: Object, field: str) -> Object:
    metadata = item["metadata"]
    return {
        "kind": item["kind"],
        **({"namespace": metadata["namespace"]} if "namespace" in metadata else {}),
        "name": metadata["name"],
        "uid": metadata["uid"],
        "apiVersion": item["apiVersion"],
        "resourceVersion": metadata["resourceVersion"],
        **({"fieldPath": field} if field else {}),
    }


def forget_old(store: Store) -> None:
    """Remove Events that are older than LIFETIME, and the oldest beyond MOST."""
    events = sorted(store.list(EVENTS), key=_last_seen)
    oldest = (datetime.datetime.now(datetime.UTC) - LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
    for index, event in enumerate(events):
        if _last_seen(event) < oldest or index < len(events) - MOST:
            try:
                store.delete(EVENTS, *key_of(event))
            except NotFound:
                continue


def _last_seen(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


_RENAMED = (  # in events.k8s.io/v1, in the core group
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
)


def as_core_event(event: Object) -> Object:
    """An Event of events.k8s.io/v1 in the form of the core group, in which it is stored."""
    names = dict(_RENAMED)
    return {**{names.get(name, name): value for name, value in event.items()}, "apiVersion": EVENTS.api_version}


def as_events_v1(resource: Resource, event: Object) -> Object:
    """An Event of the core group in the form of events.k8s.io/v1 (pkg/apis/events/v1/conversion.go)."""
    same = ("metadata", "reason", "type", "series", "action", "related")
    converted: Object = {key: event[key] for key in same if key in event}
    return {
        "apiVersion": resource.api_version,
        "kind": "Event",
        **converted,
        "regarding": event["involvedObject"],
        "note": event.get("message", ""),
        "eventTime": event.get("eventTime"),
        "reportingController": event.get("reportingComponent", ""),
        "reportingInstance": event.get("reportingInstance", ""),
        "deprecatedSource": event.get("source") or {},
        "deprecatedFirstTimestamp": event.get("firstTimestamp"),
        "deprecatedLastTimestamp": event.get("lastTimestamp"),
        "deprecatedCount": event.get("count", 0),
    }
