"""Nothing that a terminal would act upon survives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.escape import cells, escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl", "curl"),
        ("größe → 日本", "größe → 日本"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\x9b31m", "\\x9b31m"),  # CSI as one C1 character
        ("a\x7fb", "a\\x7fb"),
        ("safe\u202egpj.exe", "safe\\u202egpj.exe"),  # right-to-left override
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("two\nlines\r\t", "two\\x0alines\\x0d\\x09"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),  # a tag character: invisible
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_result_is_printable_and_encodable(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(("text", "columns"), [("curl", 4), ("日本", 4), ("e\u0301", 1), ("⇒→…", 3), ("", 0)])
def test_cells(text: str, columns: int) -> None:
    assert cells(text) == columns
