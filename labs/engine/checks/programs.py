"""Checks of programs that the learner writes: they are run, and what they print is compared with the cluster.

What belongs here: programs that read a node's tables. What does not: files that are applied or loaded (`files`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from labs.engine.checks.context import Context
from labs.engine.checks.objects import ready_addresses
from labs.engine.outcome import Outcome, failed, passed
from tracer.errors import K8snetError

SERVICE_NAME = "kubernetes.io/service-name"
TOLERANCE = 0.006  # a share may be printed with two digits
_LINE = re.compile(r"^(\d+\.\d+\.\d+\.\d+:\d+)\s+(\d+(?:\.\d+)?)$", re.MULTILINE)
Shares = dict[str, float]


def shares(context: Context, *, file: str, node: str, services: Sequence[str]) -> Outcome:
    """A Python program of the workspace, run on a node, tells each endpoint of some Service ports and its share.

    `services`: NAMESPACE/NAME:PORT_NAME; the program gets the ClusterIP:PORT of each as an argument, and prints lines
    such as "10.244.0.7:8000 0.333". Reasons: missing, fails, endpoints, shares.
    """
    path = context.workspace / file
    if not path.exists():
        return failed("missing", expected=f"the file {path}", seen="there is none", look="sudo k8snet-lab reset --step")
    objects = [one for kind in ("services", "endpointslices") for one in context.world.get(kind, namespace="*")]
    wanted = {name: _expected(objects, name) for name in services}
    addresses = [address for address, _ in wanted.values()]
    ran = context.world.run(node, sys.executable, "-", *addresses, feed=path.read_text("utf-8", "replace"))
    look = f"sudo k8snet-lab python {node} {path} {' '.join(addresses)}"
    if ran.code != 0:
        last = (ran.err.strip() or "it says nothing").splitlines()[-1]
        return failed("fails", expected=f"{path} to run on {node}", seen=f"exit code {ran.code}: {last}", look=look)
    printed = {endpoint: float(share) for endpoint, share in _LINE.findall(ran.out)}
    known = {endpoint for _, right in wanted.values() for endpoint in right}
    for endpoint in printed.keys() - known:
        expected = f"endpoints of {', '.join(services)}, and no others"
        return failed("endpoints", expected=expected, seen=endpoint, look=look)
    for name, (_, right) in wanted.items():
        outcome = _compare(name, right, {key: value for key, value in printed.items() if key in right}, look)
        if outcome is not None:
            return outcome
    return passed(f"{path} tells the endpoints of {', '.join(services)} and their shares")


def _compare(name: str, right: Shares, printed: Shares, look: str) -> Outcome | None:
    if right.keys() != printed.keys():
        expected = f"a line for each of the {len(right)} endpoints of {name}"
        missing = ", ".join(sorted(right.keys() - printed.keys()))
        return failed("endpoints", expected=expected, seen=f"none for {missing}", look=look)
    if any(abs(printed[endpoint] - share) > TOLERANCE for endpoint, share in right.items()):
        each = f"each of the {len(right)} endpoints of {name}" if len(right) > 1 else f"the one endpoint of {name}"
        seen = ", ".join(f"{share:g}" for share in printed.values())
        expected = f"{each} to have the share {next(iter(right.values())):.3f} of all new connections"
        return failed("shares", expected=expected, seen=f"{seen}, in sum {sum(printed.values()):.3f}", look=look)
    return None


def _expected(objects: Sequence[dict[str, Any]], name: str) -> tuple[str, Shares]:
    """A Service port's ClusterIP:PORT, and the share of each of its ready endpoints, as the API has them."""
    whole, _, port = name.partition(":")
    namespace, _, service = whole.partition("/")
    own = [one for one in objects if one["metadata"]["namespace"] == namespace]
    addresses = [
        f"{one['spec']['clusterIP']}:{entry['port']}"
        for one in own
        if one["kind"] == "Service" and one["metadata"]["name"] == service
        for entry in one["spec"]["ports"]
        if entry.get("name") == port
    ]
    endpoints = {
        f"{address}:{entry['port']}"
        for one in own
        if one["kind"] == "EndpointSlice" and one["metadata"]["labels"].get(SERVICE_NAME) == service
        for entry in one.get("ports") or ()
        if entry.get("name") == port
        for address in ready_addresses([one])
    }
    if not addresses or not endpoints:
        raise K8snetError(f"{name} is not there, or has no ready endpoints", hint="sudo k8snet-lab reset --step")
    return addresses[0], dict.fromkeys(endpoints, 1 / len(endpoints))
