"""From the bytes of a query to the bytes of a response.

Stands for core/dnsserver/server.go (ServeDNS), request (SizeAndDo, Scrub), pkg/edns, and for what miekg/dns refuses
before (acceptfunc.go, server.go) and cuts after (msg_truncate.go). In the order of the checks:

    less than a header, or a response                    no answer
    any operation but QUERY and NOTIFY                   NOTIMP
    not one question, or records where none belong       FORMERR
    bytes that are no message                            FORMERR
    a class other than IN                                REFUSED
    an EDNS version other than 0                         BADVERS
    a name of others, a zone transfer                    REFUSED

NOTIFY is answered like a query, as CoreDNS does. A client's EDNS record comes back with its own size and options.

What belongs here: headers, EDNS, size. What does not: names (`answer`), sockets (`server`).
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass, replace

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from labs.cluster.dns.answer import Answer, Refused, Responder, zone_of

HEADER = struct.Struct("!HHHHHH")  # RFC 1035, 4.1.1
MIN_UDP = 512  # without EDNS; RFC 1035, 2.3.4
MAX_UDP = 65507  # what IPv4 can carry
MAX_TCP = 65535
KEPT = dns.flags.TC | dns.flags.RD | dns.flags.RA | dns.flags.AD | dns.flags.CD  # of a query, in an early refusal
OPTIONS = frozenset(  # request/edns0.go, supportedOptions
    {
        dns.edns.OptionType.NSID,
        dns.edns.OptionType.EXPIRE,
        dns.edns.OptionType.COOKIE,
        dns.edns.OptionType.KEEPALIVE,
        dns.edns.OptionType.PADDING,
    }
)
DROPPED = "dropped"  # the zone of what was refused before any plugin (plugin/metrics/vars)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """A response, and what is counted of it. `zone`: as plugin/metrics names it; None: not counted. `lasting`: the same
    query would get the same bytes until a name changes."""

    wire: bytes
    zone: str | None = None
    rdtype: int = 0
    rcode: int = 0
    plugin: str = ""
    lasting: bool = False


def respond(wire: bytes, responder: Responder, *, udp: bool) -> Response | None:
    """The response to a query; None for what deserves none. Raises nothing."""
    if len(wire) < HEADER.size:
        return None
    number, flags, questions, answers, authorities, additionals = HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        return None
    opcode = dns.opcode.from_flags(flags)
    if opcode not in (dns.opcode.QUERY, dns.opcode.NOTIFY):
        return _early(number, flags, dns.rcode.NOTIMP, dns.opcode.to_flags(opcode))
    if questions != 1 or answers > 1 or authorities > 1 or additionals > 2:
        return _early(number, flags, dns.rcode.FORMERR)
    try:
        query = dns.message.from_wire(wire, keyring=False, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return _early(number, flags, dns.rcode.FORMERR)
    try:
        return _respond(query, responder, udp=udp)
    except Exception:  # a defect of ours costs one answer, not the server
        log.exception("a query could not be answered")
        return replace(_refusal(query, dns.rcode.SERVFAIL), lasting=False)


def _early(number: int, flags: int, rcode: dns.rcode.Rcode, opcode: int = 0) -> Response:
    """A refusal that holds a header only: what follows the query's may be rubbish."""
    return Response(HEADER.pack(number, dns.flags.QR | opcode | flags & KEPT | rcode, 0, 0, 0, 0))


def _respond(query: dns.message.Message, responder: Responder, *, udp: bool) -> Response:
    question = query.question[0]
    if question.rdclass != dns.rdataclass.IN:
        return _refusal(query, dns.rcode.REFUSED)
    if query.edns > 0:
        return Response(_bad_version(query))
    try:
        answer = responder.answer(question.name, question.rdtype)
    except Refused:
        zone = zone_of(question.name)
        return _refusal(query, dns.rcode.REFUSED, DROPPED if zone is None else str(zone))
    response = _reply(query, answer.rcode)
    response.flags |= dns.flags.AA
    response.answer, response.authority, response.additional = answer.answer, answer.authority, answer.additional
    wire = _fitting(response, answer, _limit(query, udp=udp))
    zone = zone_of(question.name)
    # The plugin that counts is the one that wrote last, and that is loadbalance (plugin/metrics/recorder.go).
    return Response(wire, str(zone), question.rdtype, answer.rcode, "loadbalance", lasting=not answer.shuffled)


def _refusal(query: dns.message.Message, rcode: dns.rcode.Rcode, zone: str = DROPPED) -> Response:
    return Response(_reply(query, rcode).to_wire(), zone, query.question[0].rdtype, rcode, lasting=True)


def _reply(query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    """The frame of a response: the question again, in the letters of the client."""
    response = dns.message.Message(id=query.id)
    opcode = query.opcode()
    response.flags = dns.flags.QR | dns.flags.Flag(dns.opcode.to_flags(opcode))
    if opcode == dns.opcode.QUERY:
        response.flags |= query.flags & (dns.flags.RD | dns.flags.CD)
    response.question = query.question
    if query.edns >= 0:
        options = [option for option in query.options if option.otype in OPTIONS]
        response.use_edns(0, query.ednsflags & dns.flags.DO, query.payload, options=options)
    response.set_rcode(rcode)
    return response


def _bad_version(query: dns.message.Message) -> bytes:
    response = _reply(query, dns.rcode.NOERROR)
    response.use_edns(0, 0, 0)
    response.set_rcode(dns.rcode.BADVERS)
    return response.to_wire()


def _limit(query: dns.message.Message, *, udp: bool) -> int:
    """How many bytes the client takes (pkg/edns, Size)."""
    if not udp:
        return MAX_TCP
    return min(max(query.payload, MIN_UDP), MAX_UDP) if query.edns >= 0 else MIN_UDP


def _fitting(response: dns.message.Message, answer: Answer, limit: int) -> bytes:
    """The bytes of a response, cut after the last record that fits. TC tells that any was left out, over TCP too."""
    wire = response.to_wire(max_size=limit, prefer_truncation=True)
    records = len(answer.answer) + len(answer.authority) + len(answer.additional) + (response.edns >= 0)
    if sum(HEADER.unpack_from(wire)[3:]) == records:
        return wire
    _, flags, *_ = HEADER.unpack_from(wire)
    return wire[:2] + struct.pack("!H", flags | dns.flags.TC) + wire[4:]
