"""Rules for probes to meet: as kube-proxy's iptables mode writes them for one Service, in the namespace of a router."""

from __future__ import annotations

from collections.abc import Sequence

from tests.tracer.networks import SERVICE, SERVICE6, Namespace

BACKENDS = ("10.0.2.2", "10.0.2.3", "10.0.2.4")
BACKENDS6 = ("fd00:2::2", "fd00:2::3", "fd00:2::4")


def kube_service(
    router: Namespace,
    *backends: str,
    protocol: str = "tcp",
    affinity_seconds: int | None = None,
    v6: bool = False,
    name: str = "shop/web:http",
) -> None:
    """A Service at SERVICE:80 (SERVICE6) with endpoints at port 8000; without any, it is rejected."""
    v6 = v6 or any(":" in backend for backend in backends)
    match = f"-d {SERVICE6 if v6 else SERVICE} -p {protocol}"
    chain = f"{protocol.upper()}{6 if v6 else 4}"
    if not backends:
        reject = "icmp6-port-unreachable" if v6 else "icmp-port-unreachable"
        comment = f'-m comment --comment "{name} has no endpoints"'
        rule = f"-A KUBE-SERVICES {match} {comment} -m {protocol} --dport 80 -j REJECT --reject-with {reject}"
        restore(router, v6, "filter", [":KUBE-SERVICES -", *_hooks("INPUT", "FORWARD", "OUTPUT"), rule])
        return
    lines = [":KUBE-SERVICES -", f":KUBE-SVC-{chain} -", *_hooks("PREROUTING", "OUTPUT")]
    comment = f'-m comment --comment "{name} cluster IP"'
    lines.append(f"-A KUBE-SERVICES {match} {comment} -m {protocol} --dport 80 -j KUBE-SVC-{chain}")
    lines += _choice(chain, name, protocol, backends, affinity_seconds)
    restore(router, v6, "nat", lines)


def restore(router: Namespace, v6: bool, table: str, lines: Sequence[str]) -> None:
    """Add rules in the form of iptables-save."""
    program = "ip6tables-restore" if v6 else "iptables-restore"
    text = "\n".join([f"*{table}", *lines, "COMMIT"])
    router.sh(f"{program} --noflush <<'END'\n{text}\nEND")


def _hooks(*chains: str) -> list[str]:
    return [f"-A {chain} -j KUBE-SERVICES" for chain in chains]


def _choice(chain: str, name: str, protocol: str, backends: Sequence[str], affinity_seconds: int | None) -> list[str]:
    lines = []
    ends = [f"KUBE-SEP-{chain}-{number}" for number in range(len(backends))]
    lines += [f":{end} -" for end in ends]
    if affinity_seconds is not None:
        for end in ends:
            recent = f"-m recent --name {end} --rcheck --seconds {affinity_seconds} --reap --rsource"
            lines.append(f"-A KUBE-SVC-{chain} {recent} -j {end}")
    for number, end in enumerate(ends):
        share = f"-m statistic --mode random --probability {1 / (len(ends) - number):.11f} "
        lines.append(f"-A KUBE-SVC-{chain} {share if number < len(ends) - 1 else ''}-j {end}")
    for end, backend in zip(ends, backends, strict=True):
        target = f"[{backend}]:8000" if ":" in backend else f"{backend}:8000"
        keep = f"-m recent --name {end} --set --rsource " if affinity_seconds is not None else ""
        comment = f'-m comment --comment "{name}"'
        lines.append(f"-A {end} -p {protocol} {comment} {keep}-m {protocol} -j DNAT --to-destination {target}")
    return lines
