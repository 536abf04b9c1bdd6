"""Makes foreign text harmless for a terminal.

What belongs here: one rule for every string that comes from the kernel, the Kubernetes API or a file before it is shown
to a person. What does not: JSON, whose own escapes are lossless (json.dumps writes printable ASCII only).
"""

from __future__ import annotations

import unicodedata


def escape(text: str) -> str:
    """`text` with every character that is not printable written as an escape: \\x1b, \\u202e, \\U000e0001.

    Not printable (str.isprintable, that is Unicode's categories C* and Z* but the space): C0 and C1 controls, DEL, line
    and paragraph separators, bidirectional overrides and other format characters, surrogates, unassigned code points.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(ord(character)) for character in text)


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cells(text: str) -> int:
    """How many terminal columns escaped `text` takes: 2 for wide East Asian characters, 0 for combining marks."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
