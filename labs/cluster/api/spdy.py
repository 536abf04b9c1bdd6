"""SPDY/3.1, as much of it as Kubernetes clients use: many streams over one connection, the server's side.

Stands for github.com/moby/spdystream, which kubectl speaks for port-forward, and before 1.30 also for exec and attach;
no library on PyPI speaks it. The protocol is that of https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/.
Left out, since no client of Kubernetes uses them: streams that the server opens, flow control (TCP's own holds, for
all streams together), priorities, settings.

What belongs here: frames and streams, over any transport of bytes. What does not: what streams are for, HTTP
(`labs.cluster.api.channels`).
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable

from tracer.errors import K8snetError

VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, HEADERS = 1, 2, 3, 6, 8
FLAG_FIN = 1
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 1, 3, 5  # statuses of RST_STREAM
MAX_CONTROL = 1 << 16  # bytes of a control frame, and of what a header block unpacks to
MAX_STREAMS = 1000
MAX_DATA = 1 << 15  # bytes in each data frame that we send
BACKLOG = 1 << 18  # bytes that nobody has read yet, from which on the client waits

# Section 2.6.10.1: what every header block may refer to; its Adler-32 is 0xe3c6a7c2.
_WORDS = """options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age
allow authorization cache-control connection content-base content-encoding content-language content-length
content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since
if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate
proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning
www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin"""
_NUMBERS = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    "Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,"
    "sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
_COUNTED = [word.replace("_", " ").encode() for word in _WORDS.split()]
DICTIONARY = b"".join(struct.pack(">I", len(word)) + word for word in _COUNTED) + _NUMBERS.encode()


class ProtocolError(K8snetError):
    """The client does not keep to the protocol; nothing more can be read."""


class Stream:
    """One stream, which the client opened. `headers`: names in lower case."""

    def __init__(self, connection: Connection, number: int, headers: dict[str, str]) -> None:
        self.number = number
        self.headers = headers
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._ended = False  # the client's side
        self._closed = False  # ours

    async def read(self) -> bytes:
        """The next piece of what the client sends; b"" at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._news.clear()
            await self._news.wait()
        piece = self._pieces.popleft()
        self._connection.taken(len(piece))
        return piece

    async def send(self, data: bytes) -> None:
        """Send to the client. Raises ConnectionError when it does not listen any more."""
        for start in range(0, len(data), MAX_DATA):
            await self._send(data[start : start + MAX_DATA], 0)

    async def end(self) -> None:
        """Tell the client that there will be no more."""
        if not self._closed:
            await self._send(b"", FLAG_FIN)
            self._closed = True
            self._connection.forget(self)

    async def reset(self, status: int = CANCEL) -> None:
        """Tell the client that this stream is of no use any more, in either direction."""
        self.drop()
        await self._connection.send(_control(RST_STREAM, struct.pack(">II", self.number, status)))

    async def _send(self, data: bytes, flags: int) -> None:
        if self._closed:
            raise ConnectionResetError("the stream is closed")
        await self._connection.send(struct.pack(">II", self.number, flags << 24 | len(data)) + data)

    # --- for the connection -------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether both sides have ended."""
        return self._ended and self._closed

    def take(self, data: bytes) -> None:
        """Keep what has come, for `read`."""
        if self._ended:
            self._connection.taken(len(data))
        elif data:
            self._pieces.append(data)
            self._news.set()

    def take_end(self) -> None:
        """The client sends no more."""
        self._ended = True
        self._news.set()

    def drop(self) -> None:
        """End both sides, and forget what has not been read."""
        self._connection.taken(sum(map(len, self._pieces)))
        self._pieces.clear()
        self._closed = True
        self.take_end()
        self._connection.forget(self)


class Connection:
    """The server's side of one connection."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], hold: Callable[[bool], None]) -> None:
        """`send` sends bytes, waits as long as there are too many, and raises ConnectionError when the client is gone.
        `hold(True)` asks for no more calls of `feed` until `hold(False)`."""
        self.send = send
        self._hold = hold
        self._buffer = bytearray()
        self._streams: dict[int, Stream] = {}
        self._opened: deque[Stream] = deque()
        self._news = asyncio.Event()
        self._gone = False
        self._last = 0  # number of a stream
        self._data: tuple[int, int, bool] | None = None  # the data frame that is coming: stream, bytes left, FIN
        self._backlog = 0
        self._unpack = zlib.decompressobj(zdict=DICTIONARY)
        self._pack = zlib.compressobj(zdict=DICTIONARY)

    async def accept(self) -> Stream | None:
        """The next stream that the client opens; None when it is gone."""
        while not self._opened:
            if self._gone:
                return None
            self._news.clear()
            await self._news.wait()
        return self._opened.popleft()

    async def ping(self) -> None:
        """Send what needs an answer, to find out whether the client is still there. Raises ConnectionError."""
        await self.send(_control(PING, struct.pack(">I", 2)))

    def lost(self) -> None:
        """The client is gone, or is to be taken for it."""
        self._gone = True
        for stream in list(self._streams.values()):
            stream.drop()
        self._news.set()

    def feed(self, data: bytes) -> bytes:
        """Take in what has come, in pieces of any size; gives what is to be sent at once. Raises ProtocolError."""
        self._buffer += data
        answers = bytearray()
        while True:
            if self._data is not None:
                if not self._buffer and self._data[1]:
                    break
                self._take_data()
            elif len(self._buffer) < 8:
                break
            elif not self._buffer[0] & 0x80:
                number, rest = struct.unpack_from(">II", self._buffer)
                del self._buffer[:8]
                self._data = number, rest & 0xFFFFFF, bool(rest >> 24 & FLAG_FIN)
            else:
                version, kind, rest = struct.unpack_from(">HHI", self._buffer)
                size = rest & 0xFFFFFF
                if version != 0x8000 | VERSION or size > MAX_CONTROL:
                    raise ProtocolError(f"no SPDY/3 frame: version {version & 0x7FFF}, {size} bytes")
                if len(self._buffer) < 8 + size:
                    break
                body = bytes(self._buffer[8 : 8 + size])
                del self._buffer[: 8 + size]
                try:
                    answers += self._take_control(kind, rest >> 24, body)
                except (struct.error, zlib.error) as error:
                    raise ProtocolError(f"a malformed frame of type {kind}: {error}") from error
        return bytes(answers)

    def taken(self, size: int) -> None:
        """Somebody has read so many bytes."""
        was_behind = self._backlog > BACKLOG
        self._backlog -= size
        if was_behind and self._backlog <= BACKLOG:
            self._hold(False)

    def forget(self, stream: Stream) -> None:
        """Forget a stream, if it is over."""
        if stream.is_over:
            self._streams.pop(stream.number, None)

    def _take_data(self) -> None:
        """Hand on what has come of a data frame."""
        assert self._data is not None
        number, left, is_last = self._data
        data = bytes(self._buffer[:left])
        del self._buffer[:left]
        left -= len(data)
        self._data = (number, left, is_last) if left else None
        stream = self._streams.get(number)
        if stream is None:
            return  # one that we have reset, and that the client had not heard of yet
        if data:
            was_behind = self._backlog > BACKLOG
            self._backlog += len(data)
            stream.take(data)
            if self._backlog > BACKLOG and not was_behind:
                self._hold(True)
        if is_last and not left:
            stream.take_end()
            self.forget(stream)

    def _take_control(self, kind: int, flags: int, body: bytes) -> bytes:
        """Do what a control frame says; gives the answer. Raises struct.error and zlib.error."""
        if kind == SYN_STREAM:
            return self._open(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF, flags, self._headers(body[10:]))
        if kind in (SYN_REPLY, HEADERS):
            self._headers(body[4:])  # not of interest, but what follows is packed by what is in it
        elif kind == RST_STREAM:
            stream = self._streams.get(struct.unpack(">II", body)[0])
            if stream is not None:
                stream.drop()
        elif kind == PING and struct.unpack(">I", body)[0] & 1:  # the client's; even numbers answer ours
            return _control(PING, body)
        return b""

    def _open(self, number: int, flags: int, headers: dict[str, str]) -> bytes:
        if number <= self._last or not number & 1:
            return _control(RST_STREAM, struct.pack(">II", number, PROTOCOL_ERROR))
        self._last = number
        if len(self._streams) >= MAX_STREAMS:
            return _control(RST_STREAM, struct.pack(">II", number, REFUSED_STREAM))
        stream = self._streams[number] = Stream(self, number, headers)
        if flags & FLAG_FIN:
            stream.take_end()
        self._opened.append(stream)
        self._news.set()
        nothing = self._pack.compress(struct.pack(">I", 0)) + self._pack.flush(zlib.Z_SYNC_FLUSH)
        return _control(SYN_REPLY, struct.pack(">I", number) + nothing)

    def _headers(self, block: bytes) -> dict[str, str]:
        """Unpack a header block. Raises ProtocolError, struct.error and zlib.error."""
        data = self._unpack.decompress(block, MAX_CONTROL)
        if len(data) == MAX_CONTROL:
            raise ProtocolError("too many headers")
        (count,) = struct.unpack_from(">I", data)
        words, position = [], 4
        for _ in range(2 * count):
            (size,) = struct.unpack_from(">I", data, position)
            word = data[position + 4 : position + 4 + size]
            if len(word) < size:
                raise ProtocolError("a header goes beyond its block")
            words.append(word.decode(errors="replace"))
            position += 4 + size
        return {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _control(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, len(body)) + body
