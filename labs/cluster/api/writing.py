"""Create, update, patch and delete: from what a client sends to what the store has.

Stands for k8s.io/apiserver/pkg/endpoints/handlers/{create,update,patch,delete}.go. Every method gives the object as it
is now; errors are ApiErrors with the words of the real server.

What belongs here: the order of the steps and the checks between the request and the object. What does not: reading
bytes (`labs.cluster.api.bodies`), patches (`labs.cluster.api.patches`), defaults and validation
(`labs.cluster.admission`), HTTP (`labs.cluster.api.server`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from labs.cluster import admission, deletion, schema
from labs.cluster.api import apply, bodies, managers, patches, scale, status
from labs.cluster.api.bodies import Options
from labs.cluster.api.paths import Target
from labs.cluster.api.reading import find, shown
from labs.cluster.deletion import DeleteOptions
from labs.cluster.events import as_core_event
from labs.cluster.extensions.structural import in_version
from labs.cluster.fielderrors import Invalid, invalid
from labs.cluster.options import AddressPlan
from labs.cluster.resources import ENDPOINTS, EVENTS, NAMESPACES, SERVICES, Object, Resource
from labs.cluster.store import Store
from labs.cluster.validation import show_patch
from labs.cluster.validation.others import event_v1
from tracer.errors import K8snetError

CREATED_BY_UPDATE = frozenset({SERVICES, ENDPOINTS, EVENTS})  # strategies with AllowCreateOnUpdate
PROTECTED = frozenset({"default", "kube-system", "kube-public"})


class Writer:
    """Writes to a store on behalf of clients. `plan`: where the Services' addresses come from."""

    def __init__(self, store: Store, plan: AddressPlan) -> None:
        self._store = store
        self._plan = plan

    # --- create and update --------------------------------------------------------------------------------------------

    def create(self, target: Target, data: bytes, media_type: str, options: Options) -> Object:
        """POST to a collection."""
        target, item = _as_stored(target, bodies.read_object(data, media_type, target.resource, options))
        return self._create(target, item, options)

    def _create(
        self, target: Target, item: Object, options: Options, record: admission.Recorder | None = None
    ) -> Object:
        """`record`: None for the one that notes an update."""
        _place(target, item)
        record = record or self._recorder(target.resource, {}, options)
        name = str(item["metadata"].get("name", ""))
        with _errors(target.resource, name):
            return admission.admit(self._store, self._plan, item, dry_run=options.dry_run, record=record)

    def _recorder(self, resource: Resource, old: Object, options: Options, subresource: str = "") -> admission.Recorder:
        """Notes in an object's managedFields what the client makes of `old`."""

        def record(item: Object) -> None:
            # A list with one empty entry is how clients ask to forget all.
            entries = [entry for entry in managers.entries_of(item) if entry]
            item["metadata"].pop("managedFields", None)
            after = managers.updated(entries, old, item, resource, options.manager, subresource)
            if after:
                item["metadata"]["managedFields"] = after

        return record

    def update(self, target: Target, data: bytes, media_type: str, options: Options) -> tuple[Object, bool]:
        """PUT: the object, and whether it is new."""
        if target.subresource == "scale":
            wanted = bodies.read_object(data, media_type, scale.SCALE, options)
            item = find(self._store, target)
            return self._scale(target, item, wanted, options), False
        target, item = _as_stored(target, bodies.read_object(data, media_type, target.resource, options))
        _place(target, item)
        _check_name(target, item)
        old = self._store.find(target.resource.stored, target.namespace, target.name)
        if old is None and target.resource in CREATED_BY_UPDATE and not target.subresource:
            return self._create(target, item, options), True
        old = find(self._store, target)
        return self._replace(target, old, item, options), False

    def _replace(
        self, target: Target, old: Object, item: Object, options: Options, record: admission.Recorder | None = None
    ) -> Object:
        """`record`: None for the one that notes an update."""
        resource = target.resource
        record = record or self._recorder(resource, old, options, target.subresource)
        uid = item["metadata"].get("uid")
        if uid and uid != old["metadata"]["uid"]:
            message = (
                f'Operation cannot be fulfilled on {resource.qualified} "{target.name}": Precondition failed: '
                f"UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            )
            raise status.conflict(resource, target.name, message)
        with _errors(resource, target.name):
            if target.subresource == "status":
                return admission.replace_status(
                    self._store, self._plan, resource, old, item, dry_run=options.dry_run, record=record
                )
            if target.subresource == "finalize":
                kept = {**old, "spec": {**(old.get("spec") or {}), **(item.get("spec") or {})}}
                stored = self._store.update(resource, kept, dry_run=options.dry_run)
            else:
                stored = admission.replace(
                    self._store, self._plan, resource, old, item, dry_run=options.dry_run, record=record
                )
            return stored if options.dry_run else deletion.let_go(self._store, resource.stored, stored)

    def _scale(self, target: Target, item: Object, wanted: Object, options: Options) -> Object:
        with _errors(target.resource, target.name):
            changed = scale.scaled(target.resource, item, wanted)
            record = self._recorder(target.resource, item, options, target.subresource)
            stored = admission.replace(
                self._store, self._plan, target.resource, item, changed, dry_run=options.dry_run, record=record
            )
        return scale.scale_of(target.resource, stored)

    # --- patch --------------------------------------------------------------------------------------------------------

    def patch(self, target: Target, data: bytes, media_type: str, options: Options) -> tuple[Object, bool]:
        """PATCH: the object, and whether it is new (only server-side apply makes one)."""
        known = patches.media_types(schema.type_name(target.resource))
        if target.resource.is_view:
            known = tuple(one for one in known if one != patches.APPLY_PATCH)
        if media_type not in known:
            raise status.unsupported_media_type(known)
        patch = patches.read_patch(data, media_type)
        if media_type == patches.APPLY_PATCH:
            return self._apply(target, patch, options)
        old = shown(target.resource, find(self._store, target))
        if target.subresource == "scale":
            wanted = self._patched(scale.scale_of(target.resource, old), patch, media_type, scale.SCALE, options)
            return self._scale(target, old, wanted, options), False
        item = self._patched(old, patch, media_type, target.resource, options)
        _check_name(target, item)
        _check_namespace(target, item)
        target, item = _as_stored(target, item)
        return self._replace(target, find(self._store, target), item, options), False

    def _patched(self, old: Object, patch: Any, media_type: str, resource: Resource, options: Options) -> Object:
        name = schema.type_name(resource)
        result = patches.patched(old, patch, media_type, name)
        metadata = result.get("metadata")
        if not isinstance(metadata, dict):
            raise status.bad_request("metadata: an object must have it")
        if (result.get("apiVersion"), result.get("kind")) != (resource.api_version, resource.kind):
            raise status.bad_request(
                f"the API version in the data ({result.get('apiVersion')}) does not match the expected API version "
                f"({resource.api_version})"
            )

        def failure(words: str) -> status.ApiError:
            return status.of_error(Invalid("", "", [invalid("patch", show_patch(patch), words)]))

        return bodies.typed(result, resource, options, failure)

    def _apply(self, target: Target, patch: Object, options: Options) -> tuple[Object, bool]:
        """Server-side apply."""
        if not options.manager:
            raise status.bad_request("fieldManager is required for apply patch")
        if target.subresource:
            raise status.unsupported_media_type(patches.media_types(None)[:2])
        resource = target.resource
        if "apiVersion" not in patch or "kind" not in patch:
            raise status.bad_request("apiVersion and kind must be set")
        item = bodies.check_object(patch, resource, options)
        _place(target, item)
        item["metadata"].setdefault("name", target.name)
        _check_name(target, item)
        if item["metadata"].get("managedFields"):
            raise status.bad_request("metadata.managedFields must be nil")
        found = self._store.find(resource.stored, target.namespace, target.name)
        old = None if found is None else in_version(resource, found)
        for field in ("creationTimestamp", "uid", "generation"):
            item["metadata"].pop(field, None)
        if resource.has_status:
            item.pop("status", None)
        result = apply.apply(old, item, resource, options.manager, force=options.force)
        if resource.custom is None:
            result = schema.without_nulls(result)
        if old is None:
            return self._create(target, result, options, admission.no_record), True
        return self._replace(target, old, result, options, admission.no_record), False

    # --- delete -------------------------------------------------------------------------------------------------------

    def delete(self, target: Target, options: DeleteOptions) -> dict[str, Any]:
        """DELETE of one object: its last state while it is still ending, else a Status."""
        resource = target.resource
        item = find(self._store, target)
        if resource == NAMESPACES and target.name in PROTECTED:
            message = f'namespaces "{target.name}" is forbidden: this namespace may not be deleted'
            raise status.of_error(admission.Forbidden(message), resource, target.name)
        with _errors(resource, target.name):
            last, gone = deletion.delete(self._store, resource.stored, target.namespace, target.name, options)
        if not gone:
            return in_version(resource, last)
        group = {"group": resource.group} if resource.group else {}
        details = {"name": target.name, **group, "kind": resource.plural, "uid": item["metadata"]["uid"]}
        return status.success(details)

    def delete_collection(self, target: Target, items: list[Object], options: DeleteOptions) -> list[Object]:
        """DELETE of a collection: what it held."""
        if target.resource == NAMESPACES:
            raise status.not_allowed()
        for item in items:
            metadata = item["metadata"]
            one = Target(target.resource, metadata.get("namespace", ""), metadata["name"])
            self.delete(one, options)
        return items

    def evict(self, target: Target, options: Options) -> dict[str, Any]:
        """POST to a pod's subresource eviction, as `kubectl drain` does; there are no disruption budgets here."""
        find(self._store, target)
        self.delete(Target(target.resource, target.namespace, target.name), DeleteOptions(dry_run=options.dry_run))
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def read_delete_options(data: bytes, media_type: str, query: Callable[[str], str]) -> DeleteOptions:
    """The DeleteOptions of a request: its body, or else its query. Raises ApiError 400 or 422."""
    options: dict[str, Any] = {}
    if data.strip():
        try:
            options = bodies.decode(data, media_type)
        except ValueError as error:
            raise status.bad_request(f"error decoding DeleteOptions: {error}") from None
        if not isinstance(options, dict):
            raise status.bad_request("error decoding DeleteOptions: json: cannot unmarshal array")
    else:
        if query("gracePeriodSeconds"):
            options["gracePeriodSeconds"] = _number(query("gracePeriodSeconds"))
        if query("propagationPolicy"):
            options["propagationPolicy"] = query("propagationPolicy")
        if query("orphanDependents"):
            options["orphanDependents"] = query("orphanDependents").lower() in ("1", "true")
    dry_run = options.get("dryRun") or ([query("dryRun")] if query("dryRun") else [])
    if not isinstance(dry_run, list) or any(value != "All" for value in dry_run):
        raise status.bad_options("dryRun", str(dry_run), ("All",))
    grace = options.get("gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        words = "json: cannot unmarshal into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
        raise status.bad_request(f"error decoding DeleteOptions: {words}")
    known = (deletion.FOREGROUND, deletion.BACKGROUND, deletion.ORPHAN)
    orphans = options.get("orphanDependents")
    policy = options.get("propagationPolicy") or (deletion.ORPHAN if orphans else deletion.BACKGROUND)
    if policy not in known:
        raise status.bad_options("propagationPolicy", str(policy), (*known, "nil"))
    conditions = options.get("preconditions")
    conditions = conditions if isinstance(conditions, dict) else {}
    return DeleteOptions(grace, policy, conditions.get("uid"), conditions.get("resourceVersion"), dry_run=bool(dry_run))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


@contextmanager
def _errors(resource: Resource, name: str) -> Iterator[None]:
    """Errors of the store and of admission become answers."""
    try:
        yield
    except K8snetError as error:
        raise status.of_error(error, resource, name) from error


def _as_stored(target: Target, item: Object) -> tuple[Target, Object]:
    """An object in the form in which it is stored, and the way to it: an Event has two. Raises ApiError 422."""
    if not target.resource.is_view:
        return target, item
    errors = [*event_v1(item)]
    if errors:
        name = str((item.get("metadata") or {}).get("name", ""))
        raise status.of_error(Invalid(target.resource.kind, name, errors, target.resource.group))
    return replace(target, resource=target.resource.stored), as_core_event(item)


def _place(target: Target, item: Object) -> None:
    """Put an object into the namespace of the request. Raises ApiError 400 when it says another."""
    metadata = item["metadata"] = item.get("metadata") or {}
    if not target.resource.namespaced:
        return
    _check_namespace(target, item)
    metadata["namespace"] = target.namespace


def _check_namespace(target: Target, item: Object) -> None:
    if target.resource.namespaced and item["metadata"].get("namespace") not in (None, "", target.namespace):
        raise status.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _check_name(target: Target, item: Object) -> None:
    name = item["metadata"].get("name")
    if not name and not target.subresource:
        raise status.bad_request("name must be provided")
    if name and name != target.name:
        raise status.bad_request(f"the name of the object ({name}) does not match the name on the URL ({target.name})")
