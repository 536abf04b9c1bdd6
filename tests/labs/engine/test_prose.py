"""README.md is read as prose and console blocks, and outputs are compared with what blocks say."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.engine import prose
from tracer.errors import FormatError


def read(tmp_path: Path, text: str) -> prose.Page:
    path = tmp_path / "README.md"
    path.write_text(text)
    return prose.read(path)


def test_sections_and_their_blocks(tmp_path: Path) -> None:
    page = read(
        tmp_path,
        "# Title\n\nHello.\n\n## One\n\nText.\n\n```console\n$ a \\\n> b\nout 1\nout 2\n$ c\n```\n\n"
        "```yaml\n# no heading\n## this neither\n```\n\n## Two\n\n```console unordered fails\n$ d\n```\n",
    )
    assert page.introduction == "Hello."
    one, two = page.sections
    assert (one.title, two.title) == ("One", "Two")
    assert one.text.startswith("Text.") and "## this neither" in one.text
    (block,) = one.blocks
    assert block.line == 9
    assert [(command.text, command.output) for command in block.commands] == [
        ("a \\\nb", ("out 1", "out 2")),
        ("c", ()),
    ]
    assert two.blocks[0].words == {"unordered", "fails"}


def test_a_section_that_begins_with_an_indented_block_keeps_its_form(tmp_path: Path) -> None:
    (section,) = read(tmp_path, "## One\n\n    a  b\n    c  d\n\nText.\n\n").sections
    assert section.text == "    a  b\n    c  d\n\nText."


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```console\nout\n```", "begins with a command"),
        ("```console\n```", "has no command"),
        ("```console sorted\n$ a\n```", "unknown words sorted"),
    ],
)
def test_blocks_that_make_no_sense(tmp_path: Path, block: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=rf"README\.md:3: .*{complaint}"):
        read(tmp_path, f"## One\n\n{block}\n")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a b"], ["a   b  ", ""], True),
        (["a"], ["b"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["a…z"], ["a b z"], True),
        (["a…z"], ["a b"], False),
        (["1.2…"], ["1x2"], False),  # a dot is a dot
        (["a", "…", "z"], ["a", "b", "c", "z"], True),
        (["a", "…", "z"], ["a", "z"], True),
        (["a", "…", "z"], ["a", "b"], False),
        (["…"], [], True),
        (["…", "b", "…"], ["b", "a", "b", "c"], True),
        ([], [], True),
        ([], ["a"], False),
    ],
)
def test_outputs_are_compared(expected: list[str], printed: list[str], same: bool) -> None:
    assert (prose.differs(expected, printed) is None) == same


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a", "b"], ["b", "a"], True),
        (["…", "b"], ["b", "a"], True),
        (["x …", "x 1"], ["x 1", "x 2"], True),
        (["a", "a"], ["a", "b"], False),
        (["a"], ["b", "a"], False),
    ],
)
def test_outputs_in_any_order(expected: list[str], printed: list[str], same: bool) -> None:
    assert (prose.differs(expected, printed, unordered=True) is None) == same


def test_the_first_difference_is_named() -> None:
    assert prose.differs(["a", "b", "c"], ["a", "x", "c"]) == "expected the line 'b', and saw ['a', 'x', 'c']"
