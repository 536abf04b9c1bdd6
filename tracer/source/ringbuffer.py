"""The BPF ring buffer, read in sweeps through its mapped pages.

What belongs here: the consumer's side of kernel/bpf/ringbuf.c for records of one size, and unpacking them. What does
not: what the records mean, when to sweep (`tracer.source.live`).

The kernel never wakes us. All records have the same size, so that each field of a whole sweep is one strided look at
the pages.
"""

from __future__ import annotations

import mmap
import struct
import sys
from contextlib import suppress

from tracer.batch import Batch, Row
from tracer.events import OUTCOME_OFFSET, SHAPE_SIZE

Item = Row[bytes]  # a RawConnection

RECORD_SIZE = 24 + SHAPE_SIZE  # struct connection_record in bpf/include/records.h
# BPF_RINGBUF_HDR_SZ, BPF_RINGBUF_BUSY_BIT (include/uapi/linux/bpf.h)
_HEADER_SIZE = 8
_STRIDE = _HEADER_SIZE + RECORD_SIZE
_SHAPE = struct.Struct(f"={_STRIDE - SHAPE_SIZE}x{SHAPE_SIZE}s")
_OUTCOME = _STRIDE - SHAPE_SIZE + OUTCOME_OFFSET
_FINISHED = RECORD_SIZE.to_bytes(4, sys.byteorder)
assert _STRIDE % 8 == 0


class RingBuffer:
    """The consumer's side of a BPF ring buffer of equal-sized records, read through its mapped pages.

    Layout (kernel/bpf/ringbuf.c, ringbuf_map_mmap_kern): one page that we may write, which holds the consumer
    position; one that the kernel writes, which holds the producer position; then the data, mapped twice in a row so
    that no record is ever split.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._own = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._own).cast("Q")
        whole = memoryview(self._theirs)
        self._producer = whole[:8].cast("Q")
        self._data = whole[page:]
        self._words = self._data.cast("I")
        self._times = self._data.cast("Q")
        self._latencies = self._data.cast("q")
        whole.release()

    def waiting(self) -> int:
        """How many finished records wait to be swept.

        A header is read before its record: with the busy bit gone, the record is whole.
        """
        start, waiting = self._start(), self._producer[0] - self._consumer[0]
        headers = self._words[start // 4 : (start + waiting) // 4 : _STRIDE // 4].tobytes()
        count = len(headers) // 4
        if headers == _FINISHED * count:
            return count
        return next(i for i in range(count) if headers[4 * i : 4 * i + 4] != _FINISHED)

    def filled(self) -> float:
        """The share of the room that is taken, by records that are finished or not."""
        return float((self._producer[0] - self._consumer[0]) / self._size)

    def outcomes(self, count: int) -> bytes:
        """The outcomes of the first `count` records, which must be finished, one byte each."""
        start = self._start()
        return self._data[start + _OUTCOME : start + count * _STRIDE : _STRIDE].tobytes()

    def ended_ns(self, number: int) -> int:
        """When the outcome of the `number`th record was, the first being 1; in nanoseconds since the Unix epoch."""
        position = (self._start() + (number - 1) * _STRIDE) // 8
        return self._times[position + 1] + max(0, self._latencies[position + 2])

    def look(self, count: int) -> Batch[bytes]:
        """The first `count` records, which must be finished. They stay."""
        start = self._start()
        end = start + count * _STRIDE
        words, longs = slice(start // 4, end // 4), slice(start // 8, end // 8)
        return Batch(
            self._times[longs][1 :: _STRIDE // 8].tolist(),
            self._latencies[longs][2 :: _STRIDE // 8].tolist(),
            self._words[words][6 :: _STRIDE // 4].tolist(),
            [shape for (shape,) in _SHAPE.iter_unpack(self._data[start:end])],
        )

    def drop(self, count: int) -> None:
        """Give the room of the first `count` records back to the kernel."""
        self._consumer[0] += count * _STRIDE

    def _start(self) -> int:
        """Where the next record begins."""
        return self._consumer[0] & (self._size - 1)

    def close(self) -> None:
        """Unmap. Idempotent."""
        for view in (self._consumer, self._producer, self._words, self._times, self._latencies, self._data):
            view.release()
        with suppress(BufferError):
            self._own.close()
            self._theirs.close()
