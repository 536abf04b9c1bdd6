"""What takes a fault back: told before it breaks something, kept in session.json, run when the lesson is closed.

In miniature a fault goes with the lesson's cluster. A kind cluster stays, and is to be as it was before. The learner
may have mended everything, or half of it, or more than was broken; so nothing here minds what it finds.

What belongs here: the values, and running them. What does not: breaking (`faults`), and when to run them
(`labs.engine.session`, `labs.engine.kind.stage`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from labs.cluster.mergepatch import merge
from labs.engine.world import World
from tracer.errors import K8snetError

Undo = dict[str, Any]  # of JSON
OF_THE_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")


def command(target: str, *words: str) -> Undo:
    """A command on a node or in a pod. It fails where there is nothing to take back any more, and may."""
    return {"target": target, "command": list(words)}


def change(was: Mapping[str, Any], patch: Mapping[str, Any], *, anew: bool = False) -> Iterator[Undo]:
    """What gives an object back the values that a merge patch takes away; nothing when it takes none.

    `anew`: by making the object anew, for fields that can't be changed.
    """
    if merge(was, patch) != was:
        yield {"object": unmade(was), "patch": inverse(was, patch), "anew": anew}


def unmade(found: Mapping[str, Any]) -> dict[str, Any]:
    """An object as it would be made, without what the server adds."""
    metadata = {key: value for key, value in found["metadata"].items() if key not in OF_THE_SERVER}
    return {**{key: value for key, value in found.items() if key != "status"}, "metadata": metadata}


def inverse(was: Any, patch: Any) -> Any:
    """The merge patch that gives `was` back the values that `patch` takes away, and leaves all others."""
    if not (isinstance(was, Mapping) and isinstance(patch, Mapping)):
        return was
    return {key: inverse(was[key], value) if key in was else None for key, value in patch.items()}


def run(world: World, undos: Sequence[Undo]) -> None:
    """Take back, newest first. What can't be, stays: the cluster may be gone."""
    for one in reversed(undos):
        with suppress(K8snetError):
            if "command" in one:
                world.run(one["target"], *one["command"])
            else:
                _restore(world, one)


def _restore(world: World, one: Undo) -> None:
    was, patch = one["object"], one["patch"]
    kind, name, namespace = was["kind"], was["metadata"]["name"], was["metadata"].get("namespace", "default")
    found = world.get(kind, name, namespace)
    if found is None:
        world.kubectl("create", "-f", "-", feed=json.dumps(was))
    elif merge(found, patch) == found:
        return  # somebody has mended it
    elif one["anew"]:
        world.kubectl("replace", "--force", "-f", "-", feed=json.dumps(was))
    else:
        world.kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(patch))
