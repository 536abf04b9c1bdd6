"""What a question is answered: records, or that there are none.

Stands for plugin/kubernetes/handler.go, for plugin/backend_lookup.go, which turns what stands behind a name into
records of the type that was asked for, and for plugin/loadbalance. Where CoreDNS differs from what one would expect, it
is done its way, with a comment. Authoritative throughout; recursion is never available.

What belongs here: from a name and a type to sections and a response code. What does not: bytes (`message`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from labs.cluster.dns import names
from labs.cluster.dns.index import Index
from labs.cluster.dns.names import Entry

TTL = 30  # `ttl 30`; for what is not there too (SOA, and its minimum)
VERSION = '"1.1.0"'  # DNSSchemaVersion
VERSION_TTL = 28800
MAX_CHAIN = 8  # names that lead on to another, in one answer
CLUSTER = dns.name.from_text("cluster.local.")
ZONES = (CLUSTER, dns.name.from_text("in-addr.arpa."), dns.name.from_text("ip6.arpa."))

IN = dns.rdataclass.IN
A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
FAMILY = {A: 4, AAAA: 6}
ADDRESS_TYPE = {4: A, 6: AAAA}

Name = dns.name.Name
Records = list[dns.rrset.RRset]  # one record each, so that an answer can be cut between any two


@dataclass(slots=True)
class Answer:
    """The sections of a response. Without an `answer` the zone's SOA is the authority."""

    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    answer: Records = field(default_factory=list)
    authority: Records = field(default_factory=list)
    additional: Records = field(default_factory=list)

    @property
    def shuffled(self) -> bool:
        """Whether there is more than one order that it could have come in."""
        return sum(record.rdtype in FAMILY for record in (*self.answer, *self.additional)) > 1


class Refused(Exception):
    """A question that this server does not answer: about names of others, or for a whole zone."""


class NoSuchName(Exception):
    """NXDOMAIN; before all has been heard from the API, SERVFAIL."""


def zone_of(name: Name) -> Name | None:
    """The zone of this server that a name is in."""
    return next((zone for zone in ZONES if name.is_subdomain(zone)), None)


class Responder:
    """Answers questions from an index. `own`: addresses of this server, to tell its name (NS records)."""

    def __init__(self, index: Index, own: Sequence[str] = ()) -> None:
        self.index = index
        self._own = own

    def answer(self, name: Name, rdtype: dns.rdatatype.RdataType) -> Answer:
        """The answer to a question of class IN. Raises Refused."""
        zone = zone_of(name)
        if zone is None or rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
            raise Refused
        try:
            answer = self._look_up(name, zone, rdtype)
        except NoSuchName:
            answer = Answer(dns.rcode.NXDOMAIN if self.index.synced else dns.rcode.SERVFAIL)
        if not answer.answer:
            answer.authority = [self._soa(zone)]
        return answer

    def _look_up(self, name: Name, zone: Name, rdtype: dns.rdatatype.RdataType) -> Answer:
        match rdtype:
            case dns.rdatatype.A | dns.rdatatype.AAAA:
                return Answer(answer=_balanced(self._addresses(name, zone, rdtype, set())))
            case dns.rdatatype.TXT:
                return Answer(answer=self._txt(name, zone))
            case dns.rdatatype.CNAME:
                found = self._find(name, zone, rdtype)[:1]
                return Answer(answer=[_cname(name, entry.host) for entry in found if entry.leads_on])
            case dns.rdatatype.PTR:
                return Answer(answer=self._ptr(name, zone))
            case dns.rdatatype.SRV:
                return self._srv(name, zone)
            case dns.rdatatype.NS if name == zone:
                return self._ns(zone)
            case dns.rdatatype.SOA:
                # For longer names CoreDNS does not look whether they exist: NODATA.
                return Answer(answer=[self._soa(zone)] if name == zone else [])
        self._find(name, zone, rdtype)
        return Answer()

    def _find(self, name: Name, zone: Name, rdtype: dns.rdatatype.RdataType) -> list[Entry]:
        """What stands behind a name. Raises NoSuchName, also for all but the apex of the reverse zones."""
        labels = _labels(name, zone)
        if labels == ["ns", "dns"]:
            servers = names.find_servers(self.index, self._own)
            entries = [Entry(address, 0, "ns.dns") for _, address in servers]
            return [entry for entry in entries if entry.family == FAMILY.get(rdtype)]
        if zone is not CLUSTER and labels:
            raise NoSuchName
        found = names.find(labels, self.index)
        if found is None:
            raise NoSuchName
        return found

    def _addresses(self, name: Name, zone: Name, rdtype: dns.rdatatype.RdataType, followed: set[Name]) -> Records:
        """Addresses, through the names that lead to them. `followed`: those so far, each once, which ends loops.

        A name that leads to nothing within the zone is left out; one that leads out of it is told, for the client to
        go on from there: nobody here could.
        """
        addresses: dict[str, None] = {}
        records: Records = []
        for entry in self._find(name, zone, rdtype):
            if not entry.leads_on:
                if entry.family == FAMILY[rdtype]:
                    addresses[entry.host] = None
                continue
            target = dns.name.from_text(entry.host)
            if target.is_subdomain(name) or target in followed or len(followed) >= MAX_CHAIN:
                continue
            if not target.is_subdomain(zone):
                records.append(_cname(name, entry.host))
                continue
            followed.add(target)
            try:
                following = self._addresses(target, zone, rdtype, followed)
            except NoSuchName:
                continue
            if following:
                records += [_cname(name, entry.host), *following]
        return records + [_record(name, _address(address)) for address in addresses]

    def _txt(self, name: Name, zone: Name) -> Records:
        if zone is CLUSTER and _labels(name, zone) == ["dns-version"]:
            return [_record(name, _rdata("TXT", VERSION), VERSION_TTL)]
        # CoreDNS counts a name that holds nothing itself (svc.cluster.local) as none here.
        if _labels(name, zone) == ["ns", "dns"] or not self._find(name, zone, dns.rdatatype.TXT):
            raise NoSuchName
        return []

    def _ptr(self, name: Name, zone: Name) -> Records:
        found = [] if zone is CLUSTER else names.find_reverse(name, self.index)
        if not found:
            self._find(name, zone, dns.rdatatype.PTR)
        return [_record(name, _rdata("PTR", f"{owner}.{CLUSTER}")) for owner in found]

    def _srv(self, name: Name, zone: Name) -> Answer:
        """Weights are 100 shared among all addresses and ports behind the name, whatever becomes one record of them."""
        found = [entry for entry in self._find(name, zone, dns.rdatatype.SRV) if not entry.leads_on]
        weight = max(100 // len(found), 1) if found else 0
        with_port = [entry for entry in found if entry.port >= 0]
        services = dict.fromkeys((entry.owner, entry.port) for entry in with_port)
        addresses = dict.fromkeys((entry.owner, entry.host) for entry in with_port)
        return Answer(
            answer=[_record(name, _rdata("SRV", f"0 {weight} {port} {owner}.{zone}")) for owner, port in services],
            additional=_shuffled(_record(_under(owner, zone), _address(ip)) for owner, ip in addresses),
        )

    def _ns(self, zone: Name) -> Answer:
        servers = names.find_servers(self.index, self._own)
        owners = dict.fromkeys(owner for owner, _ in servers)
        return Answer(
            answer=[_record(zone, _rdata("NS", f"{owner}.{zone}")) for owner in owners],
            additional=_shuffled(_record(_under(owner, zone), _address(ip)) for owner, ip in servers),
        )

    def _soa(self, zone: Name) -> dns.rrset.RRset:
        text = f"ns.dns.{zone} hostmaster.{zone} {self.index.serial} 7200 1800 86400 {TTL}"
        return _record(zone, _rdata("SOA", text))


def _labels(name: Name, zone: Name) -> list[str]:
    """The labels below the zone, in small letters."""
    return [label.lower().decode("latin-1") for label in name.labels[: -len(zone.labels)]]


@lru_cache(maxsize=4096)
def _under(owner: str, zone: Name) -> Name:
    return dns.name.from_text(owner, zone)


@lru_cache(maxsize=16384)
def _rdata(kind: str, text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text(IN, kind, text)


def _address(ip: str) -> dns.rdata.Rdata:
    return _rdata("AAAA" if ":" in ip else "A", ip)


def _cname(name: Name, host: str) -> dns.rrset.RRset:
    return _record(name, _rdata("CNAME", f"{host}."))


def _record(name: Name, rdata: dns.rdata.Rdata, ttl: int = TTL) -> dns.rrset.RRset:
    record = dns.rrset.RRset(name, IN, rdata.rdtype)
    record.add(rdata, ttl)
    return record


def _shuffled(records: Iterable[dns.rrset.RRset]) -> Records:
    items = list(records)
    random.shuffle(items)
    return items


def _balanced(records: Records) -> Records:
    """Addresses in random order, so that clients that take the first one spread; CNAMEs before them, in theirs."""
    chain = [record for record in records if record.rdtype not in FAMILY]
    return chain + _shuffled(record for record in records if record.rdtype in FAMILY)
