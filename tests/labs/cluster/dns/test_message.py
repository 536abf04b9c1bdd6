"""Queries and responses as bytes: what is refused and how, EDNS, and what is cut where it does not fit."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.tsig
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labs.cluster.dns import message
from labs.cluster.dns.answer import Responder
from labs.cluster.dns.memory import Memory
from labs.cluster.dns.message import respond
from labs.cluster.resources import ENDPOINTSLICES, SERVICES
from tests.labs.cluster.dns.names_of_a_shop import (
    S,
    answer_to,
    ask,
    endpoint,
    endpoint_slice,
    service,
    shop,
    summary,
)

NAME = f"web.shop.{S}"
HEADER = struct.Struct("!HHHHHH")


@pytest.fixture(scope="module")
def names() -> Responder:
    return shop()


def query(name: str = NAME, kind: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, kind, **options).to_wire()  # type: ignore[arg-type]


def with_header(wire: bytes, flags: int | None = None, **counts: int) -> bytes:
    """The query with other flags, or other counts of records (qd, an, ns, ar)."""
    number, old, *old_counts = HEADER.unpack_from(wire)
    numbers = [counts.get(name, count) for name, count in zip(("qd", "an", "ns", "ar"), old_counts, strict=True)]
    return HEADER.pack(number, old if flags is None else flags, *numbers) + wire[HEADER.size :]


class TestRefusals:
    @pytest.mark.parametrize("size", [0, 1, 11])
    def test_less_than_a_header_is_not_answered(self, names: Responder, size: int) -> None:
        assert respond(query()[:size], names, udp=True) is None

    def test_a_response_is_not_answered(self, names: Responder) -> None:
        """Else two servers could talk to each other for ever."""
        assert respond(with_header(query(), dns.flags.QR), names, udp=True) is None
        assert respond(with_header(b"\xff" * 40, dns.flags.QR), names, udp=True) is None

    @pytest.mark.parametrize("opcode", [dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.UPDATE, 3, 15])
    def test_other_operations_are_not_implemented(self, names: Responder, opcode: int) -> None:
        asked = with_header(query(), opcode << 11 | dns.flags.RD)
        response = respond(asked, names, udp=True)
        assert response is not None
        flags = dns.flags.QR | dns.flags.RD | opcode << 11 | dns.rcode.NOTIMP
        assert response.wire == asked[:2] + struct.pack("!HHHHH", flags, 0, 0, 0, 0)

    def test_notify_is_answered_like_a_query(self, names: Responder) -> None:
        response = answer_to(with_header(query("cluster.local", "SOA"), dns.opcode.NOTIFY << 11 | dns.flags.RD), names)
        assert (response.opcode(), len(response.answer)) == (dns.opcode.NOTIFY, 1)
        assert not response.flags & dns.flags.RD

    @pytest.mark.parametrize("counts", [{"qd": 0}, {"qd": 2}, {"qd": 65535}, {"an": 2}, {"ns": 2}, {"ar": 3}])
    def test_the_wrong_number_of_records_is_a_format_error(self, names: Responder, counts: dict[str, int]) -> None:
        response = answer_to(with_header(query(), **counts), names)
        assert (response.rcode(), response.question) == (dns.rcode.FORMERR, [])
        assert response.flags & dns.flags.RD

    @pytest.mark.parametrize(
        "tail",
        [b"", b"\x03web", b"\xc0\x0c\x00\x01\x00\x01", b"\x40" + bytes(70), bytes([63]) * 300, b"\x00\x00\x01"],
        ids=["nothing", "half a name", "a name that points to itself", "label type", "too long", "half a question"],
    )
    def test_what_cannot_be_read_is_a_format_error(self, names: Responder, tail: bytes) -> None:
        asked = HEADER.pack(4242, dns.flags.RD, 1, 0, 0, 0) + tail
        response = answer_to(asked, names)
        assert (response.id, response.rcode()) == (4242, dns.rcode.FORMERR)

    def test_bytes_behind_the_message_do_not_matter(self, names: Responder) -> None:
        assert summary(answer_to(query() + b"more", names))[0] == "NOERROR"

    def test_a_signature_that_nobody_checks_does_not_matter(self, names: Responder) -> None:
        signed = dns.message.make_query(NAME, "A")
        signed.use_tsig(dns.tsig.Key("key.", "c2VjcmV0"))
        assert summary(answer_to(signed.to_wire(), names))[1] == ["A 10.96.1.1"]

    @pytest.mark.parametrize("rdclass", [dns.rdataclass.CH, dns.rdataclass.HS, dns.rdataclass.ANY, dns.rdataclass.NONE])
    def test_classes_other_than_in_are_refused(self, names: Responder, rdclass: int) -> None:
        response = answer_to(query("version.bind", "TXT", rdclass=rdclass, use_edns=0), names)
        assert (summary(response), response.flags & dns.flags.AA) == (("REFUSED", [], []), 0)
        assert answer_to(query(rdclass=rdclass), names).rcode() == dns.rcode.REFUSED

    def test_an_error_of_ours_is_a_server_failure(self, names: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(message, "_limit", lambda *_, **__: 1 // 0)
        assert summary(answer_to(query(), names)) == ("SERVFAIL", [], [])


class TestEdns:
    def test_none_comes_back_where_none_was_sent(self, names: Responder) -> None:
        assert ask(names, NAME, use_edns=False).edns == -1

    @pytest.mark.parametrize("payload", [0, 512, 1232, 65535])
    def test_the_clients_own_size_comes_back(self, names: Responder, payload: int) -> None:
        response = ask(names, NAME, payload=payload)
        assert (response.edns, response.payload, response.rcode()) == (0, payload, dns.rcode.NOERROR)

    def test_do_comes_back_and_other_flags_do_not(self, names: Responder) -> None:
        response = ask(names, NAME, ednsflags=dns.flags.DO | 0x1234)
        assert response.ednsflags == dns.flags.DO

    def test_options_that_coredns_lets_pass_come_back(self, names: Responder) -> None:
        cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
        other = dns.edns.GenericOption(65001, b"?")
        assert [option.to_wire() for option in ask(names, NAME, options=[other, cookie]).options] == [b"12345678"]

    @pytest.mark.parametrize("version", [1, 255])
    def test_other_versions_are_bad(self, names: Responder, version: int) -> None:
        response = ask(names, NAME, use_edns=version)
        assert (response.rcode(), response.edns, response.answer) == (dns.rcode.BADVERS, 0, [])
        assert [one.name.to_text() for one in response.question] == [f"{NAME}."]

    def test_a_refusal_has_it_too(self, names: Responder) -> None:
        assert ask(names, "example.org", payload=1400).payload == 1400


class TestSize:
    """The Service `many` has 1,500 endpoints: 16 bytes each in an answer."""

    MANY = f"many.shop.{S}"

    @pytest.mark.parametrize(
        ("payload", "limit"), [(None, 512), (0, 512), (100, 512), (512, 512), (1232, 1232), (4096, 4096)]
    )
    def test_udp_holds_as_many_records_as_the_client_takes(
        self, names: Responder, payload: int | None, limit: int
    ) -> None:
        options = {"use_edns": False} if payload is None else {"use_edns": 0, "payload": payload}
        asked = query(self.MANY, **options)
        response = respond(asked, names, udp=True)
        assert response is not None
        parsed = dns.message.from_wire(response.wire, one_rr_per_rrset=True)
        assert parsed.flags & dns.flags.TC
        overhead = len(asked)  # header, question and OPT are as long in the response
        assert len(parsed.answer) == (limit - overhead) // 16
        assert limit - 16 < len(response.wire) <= limit
        assert len({record[0].to_text() for record in parsed.answer}) == len(parsed.answer)

    def test_edns_lets_all_through(self, names: Responder) -> None:
        response = ask(names, self.MANY)
        assert (len(response.answer), response.flags & dns.flags.TC) == (1500, 0)

    def test_tcp_needs_no_edns(self, names: Responder) -> None:
        response = ask(names, self.MANY, udp=False, use_edns=False)
        assert (len(response.answer), response.flags & dns.flags.TC) == (1500, 0)

    def test_tcp_has_its_limit_too(self, names: Responder) -> None:
        """SRV records of 1,500 endpoints take more than 64 KB: their targets are not compressed (RFC 2782)."""
        asked = query(f"_http._tcp.many.shop.{S}", "SRV")
        response = respond(asked, names, udp=False)
        assert response is not None and 65000 < len(response.wire) <= 65535
        parsed = dns.message.from_wire(response.wire)
        assert parsed.flags & dns.flags.TC
        assert 1000 < len(parsed.answer[0]) < 1500
        assert parsed.additional == []

    def test_addresses_that_do_not_fit_beside_srv_records_are_told(self, names: Responder) -> None:
        response = ask(names, f"_http._tcp.seven.shop.{S}", "SRV", payload=512)
        assert response.flags & dns.flags.TC
        assert (len(response.answer), len(response.additional)) == (7, 3)


class TestMemory:
    def test_the_same_question_gets_the_same_bytes_under_its_own_id(self) -> None:
        memory = Memory(shop())
        first, second = query(id=1), query(id=2)
        answers = [memory.respond(wire, udp=True) for wire in (first, second, first)]
        assert [one.wire[:2] for one in answers if one] == [b"\0\1", b"\0\2", b"\0\1"]
        assert len({one.wire[2:] for one in answers if one}) == 1
        assert answers[1] is not None and answers[1].zone == "cluster.local."

    def test_a_change_is_seen_at_once(self) -> None:
        names = shop()
        memory = Memory(names)
        assert b"\x0a\x60\x01\x02" in asked(memory, f"four.shop.{S}")
        names.index.change(SERVICES, ("shop", "four"), service("four", "10.96.1.9"))
        assert b"\x0a\x60\x01\x09" in asked(memory, f"four.shop.{S}")
        names.index.synced = False
        assert asked(memory, f"no.shop.{S}")[3] & 15 == dns.rcode.SERVFAIL
        names.index.synced = True
        assert asked(memory, f"no.shop.{S}")[3] & 15 == dns.rcode.NXDOMAIN

    def test_a_random_order_stays_random(self) -> None:
        memory = Memory(shop())
        assert len({asked(memory, f"each.shop.{S}") for _ in range(60)}) == 2

    def test_size_and_transport_are_part_of_the_question(self) -> None:
        """An address with twenty names: too many for a datagram."""
        names, reverse = shop(), "9.9.9.10.in-addr.arpa"
        for number in range(20):
            item = endpoint_slice(f"service-{number}", endpoint("10.9.9.9"))
            names.index.change(ENDPOINTSLICES, ("shop", str(number)), item)
        memory = Memory(names)
        assert len(asked(memory, reverse, "PTR")) <= 512
        for transport in (False, True):
            options = {"use_edns": 0, "payload": 4096} if transport else {}
            response = memory.respond(query(reverse, "PTR", id=1, **options), udp=transport)
            assert response is not None
            assert len(dns.message.from_wire(response.wire).answer[0]) == 20

    def test_it_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("labs.cluster.dns.memory.MAX_RESPONSES", 10)
        memory = Memory(shop())
        for number in range(25):
            asked(memory, f"no-{number}.shop.{S}")
        assert len(memory._responses) <= 10


def asked(memory: Memory, name: str, kind: str = "A") -> bytes:
    response = memory.respond(query(name, kind, id=1), udp=True)
    assert response is not None
    return response.wire


SOME_QUERY = st.builds(
    lambda wire, changes: bytes(changes.get(place, byte) for place, byte in enumerate(wire)),
    st.sampled_from([query(), query(use_edns=0), query("cluster.local", "NS", use_edns=0, options=[])]),
    st.dictionaries(st.integers(0, 60), st.integers(0, 255), max_size=6),
)


@given(st.one_of(st.binary(max_size=600), SOME_QUERY), st.booleans())
def test_no_bytes_do_harm(names: Responder, data: bytes, udp: bool) -> None:
    response = respond(data, names, udp=udp)
    if response is not None:
        assert response.wire[:2] == data[:2]
        assert response.wire[2] & 0x80, "a response"
        parsed = dns.message.from_wire(response.wire)
        assert not parsed.flags & dns.flags.RA or parsed.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP)
        assert parsed.rcode() != dns.rcode.SERVFAIL
