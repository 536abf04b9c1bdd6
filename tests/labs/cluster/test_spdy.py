"""SPDY's framing, against a client of our own that is written from the specification, and against noise."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labs.cluster.api import spdy
from labs.cluster.api.spdy import BACKLOG, DICTIONARY, MAX_CONTROL, MAX_STREAMS, Connection, ProtocolError


class Client:
    """The client's side: makes frames, and takes apart what the server sends."""

    def __init__(self) -> None:
        self._pack = zlib.compressobj(zdict=DICTIONARY)
        self._unpack = zlib.decompressobj(zdict=DICTIONARY)
        self.sent: list[tuple[str, int, bytes]] = []  # by the server
        self.held: list[bool] = []
        self.server = Connection(self._receive, self.held.append)

    async def _receive(self, data: bytes) -> None:
        self.read(data)

    def read(self, data: bytes) -> None:
        """Take apart whole frames."""
        while data:
            first, rest = struct.unpack_from(">II", data)
            body, flags = data[8 : 8 + (rest & 0xFFFFFF)], rest >> 24
            data = data[8 + len(body) :]
            if not first >> 31:
                self.sent.append(("end" if flags & 1 else "data", first, body))
                continue
            assert first >> 16 == 0x8003
            kind = {2: "reply", 3: "reset", 6: "ping"}[first & 0xFFFF]
            number = struct.unpack_from(">I", body)[0]
            if kind == "reply":
                body = body[:4] + self._unpack.decompress(body[4:])
            self.sent.append((kind, number, body[4:]))

    def control(self, kind: int, body: bytes, flags: int = 0, version: int = 0x8003) -> bytes:
        return struct.pack(">HHI", version, kind, flags << 24 | len(body)) + body

    def headers(self, pairs: dict[str, str]) -> bytes:
        words = [word.encode() for pair in pairs.items() for word in pair]
        return self.packed(
            struct.pack(">I", len(pairs)) + b"".join(struct.pack(">I", len(word)) + word for word in words)
        )

    def packed(self, block: bytes) -> bytes:
        return self._pack.compress(block) + self._pack.flush(zlib.Z_SYNC_FLUSH)

    def open(self, number: int, flags: int = 0, **pairs: str) -> bytes:
        return self.control(1, struct.pack(">IIH", number, 0, 0) + self.headers(pairs), flags)

    def data(self, number: int, data: bytes, *, last: bool = False) -> bytes:
        return struct.pack(">II", number, int(last) << 24 | len(data)) + data

    def feed(self, data: bytes, pieces: int = 0) -> None:
        size = pieces or max(len(data), 1)
        for start in range(0, len(data), size):
            self.read(self.server.feed(data[start : start + size]))


def run(scenario: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        await asyncio.wait_for(scenario(Client()), 20)

    asyncio.run(play())


def test_the_dictionary_is_that_of_the_specification() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@pytest.mark.parametrize("pieces", [1, 2, 7, 8, 9, 0])
def test_a_stream_in_both_directions(pieces: int) -> None:
    async def scenario(client: Client) -> None:
        whole = client.open(1, StreamType="stdin", port="80") + client.data(1, b"hello ")
        whole += client.data(1, b"") + client.data(1, b"you", last=True) + client.open(3, streamtype="stdout")
        client.feed(whole, pieces)
        first, second = await client.server.accept(), await client.server.accept()
        assert first is not None and second is not None
        assert (first.headers, second.headers) == ({"streamtype": "stdin", "port": "80"}, {"streamtype": "stdout"})
        text = b""
        while piece := await first.read():
            text += piece
        assert text == b"hello you"
        await second.send(b"x" * 70000)
        await second.end()
        with pytest.raises(ConnectionError):
            await second.send(b"more")
        assert [(kind, number) for kind, number, _ in client.sent] == [
            ("reply", 1),
            ("reply", 3),
            *[("data", 3)] * 3,
            ("end", 3),
        ]
        assert client.sent[0][2] == struct.pack(">I", 0)
        assert b"".join(body for kind, _, body in client.sent if kind == "data") == b"x" * 70000

    run(scenario)


def test_control_frames() -> None:
    async def scenario(client: Client) -> None:
        client.feed(client.control(6, struct.pack(">I", 7)))  # PING
        client.feed(client.control(6, struct.pack(">I", 2)))  # the answer to one of ours
        client.feed(client.control(4, struct.pack(">III", 1, 4, 100)))  # SETTINGS
        client.feed(client.control(9, struct.pack(">II", 1, 100)))  # WINDOW_UPDATE
        client.feed(client.control(7, struct.pack(">II", 0, 0)))  # GOAWAY
        assert client.sent == [("ping", 7, b"")]
        client.feed(client.open(1) + client.control(8, struct.pack(">I", 1) + client.headers({"a": "b"})))
        client.feed(client.open(3, c="d"))  # which is packed by what HEADERS held
        await client.server.accept()
        second = await client.server.accept()
        assert second is not None and second.headers == {"c": "d"}
        client.feed(client.data(3, b"lost") + client.control(3, struct.pack(">II", 3, 5)))  # RST_STREAM
        assert await second.read() == b""
        with pytest.raises(ConnectionError):
            await second.send(b"x")
        await client.server.ping()
        assert client.sent[-1] == ("ping", 2, b"")

    run(scenario)


def test_numbers_of_streams_only_rise_and_are_the_clients() -> None:
    async def scenario(client: Client) -> None:
        client.feed(client.open(5) + client.open(5) + client.open(3) + client.open(8) + client.open(7))
        told = [(kind, number) for kind, number, _ in client.sent]
        assert told == [("reply", 5), ("reset", 5), ("reset", 3), ("reset", 8), ("reply", 7)]
        assert client.sent[1][2] == struct.pack(">I", spdy.PROTOCOL_ERROR)

    run(scenario)


def test_there_are_not_too_many_streams() -> None:
    async def scenario(client: Client) -> None:
        for number in range(MAX_STREAMS + 1):
            client.feed(client.open(2 * number + 1))
        assert client.sent[-1] == ("reset", 2 * MAX_STREAMS + 1, struct.pack(">I", spdy.REFUSED_STREAM))
        first = await client.server.accept()
        assert first is not None
        await first.end()
        client.feed(client.data(1, b"", last=True))  # now it is over, and there is room for another
        client.feed(client.open(2 * MAX_STREAMS + 3))
        assert client.sent[-1][:2] == ("reply", 2 * MAX_STREAMS + 3)

    run(scenario)


def test_who_is_not_read_is_held() -> None:
    async def scenario(client: Client) -> None:
        client.feed(client.open(1))
        stream = await client.server.accept()
        assert stream is not None
        for _ in range(BACKLOG // 10000 + 3):
            client.feed(client.data(1, bytes(10000)))
        assert client.held == [True]
        while client.held == [True]:
            await stream.read()
        assert client.held == [True, False]
        for _ in range(BACKLOG // 10000 + 3):
            client.feed(client.data(1, bytes(10000)))
        await stream.reset()
        assert client.held == [True, False, True, False]
        client.feed(client.data(1, bytes(BACKLOG + 1)))  # sent before it heard of that
        assert client.held == [True, False, True, False]

    run(scenario)


def test_a_client_that_goes_ends_everything() -> None:
    async def scenario(client: Client) -> None:
        client.feed(client.open(1))
        stream = await client.server.accept()
        assert stream is not None
        reading, accepting = asyncio.create_task(stream.read()), asyncio.create_task(client.server.accept())
        await asyncio.sleep(0)
        client.server.lost()
        assert (await reading, await accepting) == (b"", None)

    run(scenario)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: b"\x80\x02" + bytes(10),
        lambda client: client.control(1, bytes(3)),
        lambda client: client.control(1, struct.pack(">IIH", 1, 0, 0) + b"no zlib"),
        lambda client: client.control(6, b"x"),
        lambda client: client.control(3, bytes(12)),
        lambda client: struct.pack(">HHI", 0x8003, 1, MAX_CONTROL + 1),
        lambda client: client.open(1, bomb="x" * 1_000_000),
        lambda client: client.control(1, struct.pack(">IIH", 1, 0, 0) + client.packed(bytes(4 + 1_000_000))),
        lambda client: client.control(1, struct.pack(">IIH", 1, 0, 0) + client.packed(b"\0\0\0\1\0\0\0\x50x")),
    ],
)
def test_what_is_wrong_ends_the_connection(make: Callable[[Client], bytes]) -> None:
    async def scenario(client: Client) -> None:
        with pytest.raises(ProtocolError):
            client.feed(make(client))

    run(scenario)


def conversation(client: Client) -> bytes:
    return b"".join(
        [
            client.open(1, streamtype="error"),
            client.open(3, streamtype="stdin"),
            client.data(3, b"some input"),
            client.control(6, struct.pack(">I", 1)),
            client.control(8, struct.pack(">I", 1) + client.headers({"name": "value"})),
            client.data(3, b"", last=True),
            client.control(3, struct.pack(">II", 1, 5)),
            client.control(7, struct.pack(">II", 0, 0)),
        ]
    )


@settings(max_examples=300)
@given(st.data())
def test_noise_does_no_harm(data: st.DataObject) -> None:
    """Whatever comes, in whatever pieces: either it is taken, or it is a ProtocolError."""

    async def scenario(client: Client) -> None:
        noise = bytearray(conversation(client))
        for _ in range(data.draw(st.integers(0, 4))):
            position = data.draw(st.integers(0, len(noise) - 1))
            kind = data.draw(st.sampled_from(["change", "insert", "cut"]))
            if kind == "change":
                noise[position] = data.draw(st.integers(0, 255))
            elif kind == "insert":
                noise[position:position] = data.draw(st.binary(max_size=20))
            else:
                del noise[position : position + data.draw(st.integers(1, 20))]
        pieces = data.draw(st.integers(1, 64))
        with contextlib.suppress(ProtocolError):
            for start in range(0, len(noise), pieces):
                client.server.feed(bytes(noise[start : start + pieces]))
        client.server.lost()
        while (stream := await client.server.accept()) is not None:
            assert await stream.read() == b""

    run(scenario)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_anything_at_all(noise: bytes, is_control: bool) -> None:
    async def scenario(client: Client) -> None:
        with contextlib.suppress(ProtocolError):
            client.server.feed(b"\x80\x03\0" * is_control + noise)

    run(scenario)
