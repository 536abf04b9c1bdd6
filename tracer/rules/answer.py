"""The question and the answer of `k8snet-trace explain`, and the answer's JSON.

What belongs here: what is told. What does not: finding it out (`explain`), words for people (`tracer.explanation`).

Of some rules it can't be told whether they apply (a condition on something that only the live kernel knows, a module
that we do not know). Verdict, backends and shares are those of packets to which such rules do not apply; `depends`
lists them, and `otherwise` what else may happen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tracer.rules.trail import Passed, Step, Visited


class Question(NamedTuple):
    """A new flow. protocol: TCP, UDP or SCTP. source: the sender's address; None: a process on this node."""

    ip: str
    port: int
    protocol: str = "TCP"
    source: str | None = None

    @property
    def family(self) -> str:
        """ip or ip6, as nft calls them."""
        return "ip6" if ":" in self.ip else "ip"


@dataclass(frozen=True, slots=True)
class ServiceName:
    """The Service port that rules on the way name."""

    namespace: str
    name: str
    port_name: str | None


@dataclass(frozen=True, slots=True)
class Backend:
    """Where translated packets go. probability: of all that are translated. masquerade: whether they hide their source.

    verdict: accept, or drop or reject where rules behind the translation refuse it. via: the chains walked to reach it.
    """

    ip: str
    port: int
    probability: float
    masquerade: bool
    verdict: str
    via: tuple[str, ...]


class Outcome(NamedTuple):
    """One of the ways in which it ends. ip, port: where to; None for packets that are refused.

    verdict: as in Explanation. masquerade: whether the source was changed. probability: of all packets.
    """

    verdict: str
    ip: str | None
    port: int | None
    masquerade: bool
    probability: float


class Otherwise(NamedTuple):
    """What may happen besides, as it depends. ip, port: where to; None for packets that are refused.

    masquerade: whether the source is changed then.
    """

    verdict: str
    ip: str | None
    port: int | None
    masquerade: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a new flow.

    verdict: dnat: translated to a backend · accept: let through to where it was sent, by a rule that says so or changes
    its source · untouched: let through, and no rule said anything · reject, drop: no packet gets through. Of several
    outcomes by chance, the first of these that has a share; `shares` and `outcomes` have them all.
    masquerade: every packet that gets through has its source changed. `masquerade_why`: by which rules. passed: what a
    packet passes until then.
    """

    question: Question
    source: str | None
    local: bool
    verdict: str
    shares: dict[str, float]
    outcomes: tuple[Outcome, ...]
    service: ServiceName | None
    backends: tuple[Backend, ...]
    masquerade: bool
    masquerade_why: tuple[Step, ...]
    affinity_seconds: int | None
    steps: tuple[Step, ...]
    visited: tuple[Visited, ...]
    otherwise: tuple[Otherwise, ...]
    notes: tuple[str, ...]
    passed: Passed = field(default_factory=Passed)

    @property
    def depends(self) -> tuple[Step, ...]:
        """The rules of which it can't be told whether they apply."""
        return tuple(step for step in self.steps if step.effect == "depends")

    def to_json(self) -> dict[str, Any]:
        """The document of `k8snet-trace explain -o json`."""
        question = self.question
        return {
            "destination": endpoint_text(question.ip, question.port),
            "protocol": question.protocol,
            "source": self.source,
            "from": "node" if self.local else "outside",
            "verdict": self.verdict,
            "shares": {verdict: _rounded(share) for verdict, share in self.shares.items()},
            "outcomes": [each._replace(probability=_rounded(each.probability))._asdict() for each in self.outcomes],
            "service": None
            if self.service is None
            else {
                "namespace": self.service.namespace,
                "name": self.service.name,
                "port_name": self.service.port_name,
            },
            "backends": [_backend_json(backend) for backend in self.backends],
            "masquerade": self.masquerade,
            "masquerade_why": [step.text for step in self.masquerade_why],
            "affinity_seconds": self.affinity_seconds,
            "steps": [_step_json(step) for step in self.steps],
            "passed_over": [_visited_json(visit) for visit in self.visited if visit.passed],
            "depends": [text for step in self.depends for text in step.on],
            "otherwise": [each._asdict() for each in self.otherwise],
            "passed": {
                "rules": _count(self.passed.rules),
                "chains": _count(self.passed.chains),
                "lookups": _count(self.passed.lookups),
            },
            "notes": list(self.notes),
        }


def endpoint_text(ip: str, port: int) -> str:
    """10.0.0.1:80, [fd00::1]:80."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _count(mean: float) -> int | float:
    """A whole number where all ways are equally long, or come out even."""
    rounded = round(mean, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _rounded(probability: float) -> float:
    """Without the noise of adding and multiplying; the kernel's own grain is 2^-31."""
    return round(probability, 12)


def _backend_json(backend: Backend) -> dict[str, Any]:
    return {
        "ip": backend.ip,
        "port": backend.port,
        "probability": _rounded(backend.probability),
        "masquerade": backend.masquerade,
        "verdict": backend.verdict,
        "via": list(backend.via),
    }


def _step_json(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {
        "family": step.table.family,
        "table": step.table.name,
        "chain": step.chain,
        "rule": step.rule,
        "text": step.text,
        "effect": step.effect,
        "probability": _rounded(step.probability),
        "hook": step.hook,
        "engine": step.table.origin.value,
        "target": step.target,
    }
    if step.effect in ("depends", "missing", "loop"):
        found |= {"would": step.would, "on": list(step.on)}
    return found


def _visited_json(visit: Visited) -> dict[str, Any]:
    return {
        "family": visit.table.family,
        "table": visit.table.name,
        "chain": visit.chain,
        "hook": visit.hook,
        "rules": visit.passed,
    }
