"""The BPF ring buffer, read in sweeps through its mapped pages.

What belongs here: the consumer's side of kernel/bpf/ringbuf.c for records of one size, and unpacking them. What does
not: what the records mean, when to sweep (`tracer.source.live`).

The kernel never wakes us, and one struct.Struct unpacks a whole sweep. All records have the same size, so that a sweep
is one strided look at the headers and one copy.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress

from tracer.events import OUTCOME_OFFSET, SHAPE_SIZE

Item = tuple[int, int, int, bytes]  # a RawConnection

RECORD_SIZE = 24 + SHAPE_SIZE  # struct connection_record in bpf/include/records.h
# BPF_RINGBUF_HDR_SZ, BPF_RINGBUF_BUSY_BIT (include/uapi/linux/bpf.h)
_HEADER_SIZE = 8
_STRIDE = _HEADER_SIZE + RECORD_SIZE
_RECORD = struct.Struct(f"=8xQqI4x{SHAPE_SIZE}s")
_OUTCOME = _STRIDE - SHAPE_SIZE + OUTCOME_OFFSET
assert _RECORD.size == _STRIDE and _STRIDE % 8 == 0


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
        whole.release()

    def sweep(self) -> tuple[list[Item], bytes]:
        """All finished records since the last sweep, as RawConnection tuples, and their outcomes, one byte each."""
        position = self._consumer[0]
        waiting = self._producer[0] - position
        if not waiting:
            return [], b""
        start = position & (self._size - 1)
        # A header is read before its record: with the busy bit gone, the record is whole.
        lengths = self._words[start // 4 : (start + waiting) // 4 : _STRIDE // 4].tolist()
        finished = len(lengths)
        if lengths.count(RECORD_SIZE) != finished:
            finished = next(i for i, length in enumerate(lengths) if length != RECORD_SIZE)
        end = start + finished * _STRIDE
        swept = bytes(self._data[start:end])
        self._consumer[0] = position + finished * _STRIDE
        return list(_RECORD.iter_unpack(swept)), swept[_OUTCOME::_STRIDE]

    def close(self) -> None:
        """Unmap. Idempotent."""
        for view in (self._consumer, self._producer, self._words, self._data):
            view.release()
        with suppress(BufferError):
            self._own.close()
            self._theirs.close()
