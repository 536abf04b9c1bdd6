"""Checks that send something of their own: DNS queries, HTTP requests, crafted packets.

What belongs here: asking from a pod, a node or a host outside, and judging answers. What does not: what the learner
sent (`records`).
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from labs.engine.checks.context import Context
from labs.engine.checks.counters import counted
from labs.engine.checks.objects import endpoint_addresses, newest_pod, with_addresses
from labs.engine.outcome import Outcome, failed, passed
from tracer.errors import K8snetError

DNS_SECONDS = 2
HTTP_SECONDS = 3
SEPARATOR = "----"  # no line of a metrics page begins so
ANSWER_END = "\x1e"  # ASCII's record separator


def dns(
    context: Context,
    *,
    name: str,
    source: str = "default/client",
    type: str = "A",
    status: str = "NOERROR",
    answers: Sequence[str] | None = None,
    endpoints_of: str | None = None,
    server: str | None = None,
    search: bool = True,
) -> Outcome:
    """A name, asked by `source` as its resolv.conf says (`search`), is answered with this status, these addresses.

    `endpoints_of`: the addresses of the ready endpoints of a Service, NAMESPACE/NAME, are these addresses.
    Reasons: no-answer, status, answers.
    """
    look = f"sudo k8snet-lab exec {source} -- dig {'+search ' if search else ''}{name} {type}"
    message = ask(context, source, name, type, server=server, search=search)
    expected = f"{source} to get {status} for {name} {type}"
    if message is None:
        return failed("no-answer", expected=expected, seen="no answer", look=look)
    if message["status"] != status:
        return failed("status", expected=expected, seen=message["status"], look=look)
    found = [text.split()[-1] for text in message.get("ANSWER_SECTION", ())]
    if endpoints_of is not None:
        namespace, _, service = endpoints_of.partition("/")
        answers = endpoint_addresses(context, service, namespace)
    if answers is not None and sorted(found) != sorted(answers):
        expected = f"{name} to be {', '.join(sorted(answers))}"
        return failed("answers", expected=expected, seen=", ".join(sorted(found)) or "nothing", look=look)
    return passed(f"{name} is {', '.join(found)}" if found else f"{name}: {message['status']}")


def ask(
    context: Context, source: str, name: str, type: str = "A", *, server: str | None = None, search: bool = True
) -> dict[str, Any] | None:
    """The answer to a DNS query, as `dig +yaml` has it ("status", "ANSWER_SECTION", …); None when none came."""
    command = ["dig", *([f"@{server}"] if server else []), name, type, f"+{'' if search else 'no'}search"]
    return _message(context.world.run(source, *command, "+yaml", f"+time={DNS_SECONDS}", "+tries=1").out)


def _message(text: str) -> dict[str, Any] | None:
    """The answer in what `dig +yaml` prints, beside lines for people; None when there is none."""
    try:
        document = yaml.safe_load("".join(line for line in text.splitlines(keepends=True) if not line.startswith(";")))
    except yaml.YAMLError as error:
        raise K8snetError(f"dig: {text[:200]!r}") from error
    for one in document if isinstance(document, list) else ():
        if isinstance(one, dict) and one.get("type") == "MESSAGE":
            found: dict[str, Any] = one["message"]["response_message_data"]
            return found
    return None


def queries(
    context: Context,
    *,
    costs: Mapping[str, int],
    source: str = "default/client",
    deployment: str | None = None,
    both: bool = False,
) -> Outcome:
    """Each of these names, looked up by `source` as its programs do it, is found with at most so many DNS queries.

    `deployment`: NAMESPACE/NAME; its newest ready pod is `source`. `both`: IPv6 addresses are looked for, too.
    Reasons: no-pod, no-answer, too-many.
    """
    if deployment is not None:
        pod = newest_pod(context.world, deployment)
        if pod is None:
            look = f"kubectl -n {deployment.partition('/')[0]} get pods"
            return failed("no-pod", expected=f"a ready pod of {deployment}", seen="there is none", look=look)
        source = pod
    kind = "an address" if both else "an IPv4 address"
    look = f"sudo k8snet-lab exec {source} -- cat /etc/resolv.conf"
    found = count_queries(context, source, list(costs), both=both)
    for name, at_most in costs.items():
        number = found[name]
        expected = f"{source} to find {kind} of {name} with {_queries(at_most)} or less"
        if number is None:
            return failed("no-answer", expected=expected, seen="it finds none", look=look)
        if number > at_most:
            return failed("too-many", expected=expected, seen=_queries(number), look=look)
    return passed("; ".join(f"{name}: {_queries(number or 0)}" for name, number in found.items()))


def _queries(number: int) -> str:
    return "1 query" if number == 1 else f"{number} queries"


def count_queries(context: Context, source: str, names: Sequence[str], *, both: bool) -> dict[str, int | None]:
    """How many DNS queries it costs the C library to look each name up, as the CoreDNS pods count; None: not found.

    Raises K8snetError when they can't be asked. What others ask meanwhile is counted, too.
    """
    behind = context.world.get("endpoints", "kube-dns", "kube-system") or {}
    pods = [address["ip"] for part in behind.get("subsets") or () for address in part.get("addresses") or ()]
    if not pods:
        return dict.fromkeys(names)
    count = f"curl -sS {' '.join(f'http://{pod}:9153/metrics' for pod in pods)} || exit 9"
    look_up = f"getent {'ahosts' if both else 'ahostsv4'}"
    steps = [f"{look_up} {shlex.quote(name)} >&2; printf '\\n{SEPARATOR} %s\\n' $?; {count}" for name in names]
    ran = context.world.run(source, "sh", "-c", "; ".join([count, *steps]))
    if ran.code == 9:
        raise K8snetError(f"the numbers of the CoreDNS pods: {ran.err.strip()}")
    if ran.code != 0:
        return dict.fromkeys(names)
    first, *rest = re.split(f"^{SEPARATOR} (\\d+)$", ran.out, flags=re.MULTILINE)
    sums = [_asked(text) for text in (first, *rest[1::2])]
    codes = rest[0::2]
    return {
        name: None if code != "0" else round(after - before)
        for name, code, before, after in zip(names, codes, sums, sums[1:], strict=False)
    }


def _asked(metrics: str) -> float:
    """The sum of all counters of queries in some texts of Prometheus' format."""
    return sum(float(value) for value in re.findall(r"^coredns_dns_requests_total\{.*\} (\S+)$", metrics, re.MULTILINE))


def http(
    context: Context,
    *,
    url: str,
    source: str = "default/client",
    status: int = 200,
    works: bool = True,
    json_has: dict[str, Any] | None = None,
    times: int = 1,
) -> Outcome:
    """A URL, asked for by `source` so many times, each time on a new connection, is answered with this status.

    {NAMESPACE/POD} in the URL is that pod's address. `works` false: no answer must come. `json_has`: dotted keys of the
    answer's JSON and their values. Reasons: no-answer, answer, status, body.
    """
    url = with_addresses(context.world, url)
    look = f"sudo k8snet-lab exec {source} -- curl -sv --max-time {HTTP_SECONDS} {url}"
    expected = f"{source} to {'get an answer' if works else 'get no answer'} from {url}"
    for code, body, complaint in fetch(context, source, url, times):
        if (code != 0) != works:
            if works:
                return failed("no-answer", expected=expected, seen=complaint, look=look)
            return failed("answer", expected=expected, seen=f"status {code}", look=look)
        if works and code != status:
            return failed("status", expected=f"status {status} from {url}", seen=f"status {code}", look=look)
        different = works and json_has and _different(body, json_has)
        if different:
            return failed("body", expected=f"{url} to answer with {json_has}", seen=str(different), look=look)
    return passed(f"{source} gets {status} from {url}" if works else f"{source} gets nothing from {url}")


def fetch(context: Context, source: str, url: str, times: int = 1) -> list[tuple[int, str, str]]:
    """Of each request, until one is not answered: status (0: none), body, and curl's complaint."""
    curl = ["curl", "-gsS", "--max-time", str(HTTP_SECONDS), "-o", "-", "-w", "\\n%{http_code}", url]
    # one command for all of them: entering a pod takes longer than a request
    again = 'for _ in $(seq "$1"); do "${@:2}" || exit; printf "\\036"; done'
    ran = context.world.run(source, *(curl if times == 1 else ["bash", "-c", again, "bash", str(times), *curl]))
    found = []
    for answer in ran.out.removesuffix(ANSWER_END).split(ANSWER_END):
        body, _, code = answer.rpartition("\n")
        found.append((int(code or 0), body, ran.err.strip() or f"curl's exit code {ran.code}"))
    return found


def _different(body: str, wanted: dict[str, Any]) -> str | None:
    try:
        document = json.loads(body)
    except ValueError:
        return body[:200] or "an empty answer"
    for key, value in wanted.items():
        found = document
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            return f"{key} is {found}"
    return None


def probe(
    context: Context,
    *,
    source: str,
    to: str,
    count: int = 60,
    backends: int,
    p_value: float = 0.001,
) -> Outcome:
    """Crafted packets from a node or pod to `to` reach so many backends, and spread over them as the rules promise.

    Reasons: backends, spread.
    """
    document = context.world.probe(source, to, count)
    reached = [one for one in document["reached"] if one["observed"]]
    look = f"sudo k8snet-lab exec node1 -- k8snet-trace probe {to} --from {source}"
    if len(reached) != backends:
        expected = f"{count} packets to {to} to reach {backends} backends"
        return failed("backends", expected=expected, seen=f"they reached {len(reached)}", look=look)
    chance = document["p_value"]
    if chance is not None and chance < p_value:
        seen = f"as uneven as once in {1 / max(chance, 1e-9):.0f} times"
        return failed("spread", expected=f"{to} to be spread as the rules promise", seen=seen, look=look)
    return passed(f"{count} packets reached {backends} backend{'' if backends == 1 else 's'}")


def script(
    context: Context,
    *,
    name: str,
    target: str,
    node: str,
    service: str,
    namespace: str = "default",
    flows: int,
    endpoints: int,
) -> Outcome:
    """A Python file of the workspace, run at `target`, has the rules of `node` send new flows to a Service.

    `flows`: at least so many; `endpoints`: to so many of its endpoints. Reasons: missing, crash, flows, endpoints.
    """
    path = context.workspace / name
    if not path.is_file():
        return failed("missing", expected=f"the file {path}", seen="it is not there", look="k8snet-lab reset --step")
    look = f"sudo k8snet-lab python {target} {path}"
    before = counted(context, node, namespace, service)
    ran = context.world.run(target, sys.executable, "-", feed=path.read_text(encoding="utf-8", errors="replace"))
    if ran.code != 0:
        last = (ran.err.strip() or ran.out.strip()).splitlines()[-1:] or [f"exit code {ran.code}"]
        return failed("crash", expected=f"{path} to run to its end", seen=last[0], look=look)
    now = counted(context, node, namespace, service)
    new = {key: count - before.get(key, 0) for key, count in now.items() if count > before.get(key, 0)}
    expected = f"{path} to make at least {flows} new flows to {namespace}/{service}"
    if sum(new.values()) < flows:
        return failed("flows", expected=expected, seen=f"the rules of {node} saw {sum(new.values())}", look=look)
    if len(new) != endpoints:
        expected += f", which reach {endpoints} of its endpoints"
        return failed("endpoints", expected=expected, seen=f"they reached {len(new)}", look=look)
    return passed(f"{sum(new.values())} new flows, to {', '.join(f'{key}: {new[key]}' for key in sorted(new))}")
