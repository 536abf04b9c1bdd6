"""What the C library does with memory that was freed: giving it back to the kernel, or keeping it for next time.

What belongs here: the two words of glibc for it (mallopt(3), malloc_trim(3)); other C libraries have neither, and are
left alone. What does not: when it is time for which (`tracer.source.live`, `tracer.session`), Python's own garbage.
"""

from __future__ import annotations

import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back() -> None:
    """Give back what was freed and is kept, such as the 20 MB that clang leaves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep(size: int) -> None:
    """From now on keep up to `size` bytes that are freed at the end of the heap, and take pieces up to that size from
    there.

    glibc otherwise gives the end of the heap back as soon as it is twice the largest piece seen, and takes it again for
    the next one: each page is a fault, and is zeroed, every time. Where records are made into text by the hundred, that
    can be a third of what they cost.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, size)
        set_option(_M_TRIM_THRESHOLD, size)
