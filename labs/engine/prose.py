"""A lesson's README.md: its introduction, its sections, and the console blocks in them with what they should print.

A block that begins with ```console holds commands, each after "$ " (continued after a backslash, in a line that begins
with "> "), and below each of them what it prints. In what it prints, … stands for anything within a line, and a line
of … alone for any number of lines. Words after `console` say more about a block:

    unordered   the lines of an output may come in any order
    fails       the block's last command ends with another exit code than 0

What belongs here: reading Markdown, and comparing outputs. What does not: running commands (`labs.engine.rehearse`),
and how prose looks on a terminal (`labs.engine.tell`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tracer.errors import FormatError

ANYTHING = "…"
WORDS = frozenset({"unordered", "fails"})


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a block, and the lines that it prints, with `…` for what differs."""

    text: str
    output: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One console block. `line`: where it begins in its file, counted from 1."""

    line: int
    commands: tuple[Command, ...]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below one "## " heading, as Markdown without that heading, and the console blocks in it."""

    title: str
    text: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A README.md. `introduction`: what stands before the first section, without the page's title."""

    introduction: str
    sections: tuple[Section, ...]


def read(path: Path) -> Page:
    """Read a page. Raises FormatError for what can't be read, and for a console block without a command."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: {error}") from error
    lines = text.splitlines()
    tokens = MarkdownIt("commonmark").parse(text)
    headings = [
        (_first_line(token), _heading(tokens, index)) for index, token in enumerate(tokens) if _is_section(token)
    ]
    blocks = [
        _block(token, path) for token in tokens if token.type == "fence" and token.info.split()[:1] == ["console"]
    ]
    ends = [start for start, _ in headings[1:]] + [len(lines)]
    sections = tuple(
        Section(
            title,
            "\n".join(lines[start + 1 : end]).strip("\n").rstrip(),  # the first line may be a block's, indented
            tuple(block for block in blocks if start < block.line - 1 < end),
        )
        for (start, title), end in zip(headings, ends, strict=False)
    )
    first = headings[0][0] if headings else len(lines)
    return Page("\n".join(line for line in lines[:first] if not line.startswith("# ")).strip(), sections)


def _is_section(token: Token) -> bool:
    return token.type == "heading_open" and token.tag == "h2"


def _heading(tokens: Sequence[Token], index: int) -> str:
    return tokens[index + 1].content


def _first_line(token: Token) -> int:
    assert token.map is not None, "block tokens know their lines"
    return token.map[0]


def _block(token: Token, path: Path) -> Block:
    line = _first_line(token) + 1
    words = frozenset(token.info.split()[1:])
    if words - WORDS:
        raise FormatError(f"{path}:{line}: console block: unknown words {', '.join(sorted(words - WORDS))}")
    commands: list[tuple[list[str], list[str]]] = []
    for text in token.content.splitlines():
        if text.startswith("$ "):
            commands.append(([text[2:]], []))
        elif not commands:
            raise FormatError(f'{path}:{line}: a console block begins with a command, after "$ "')
        elif text.startswith("> ") and commands[-1][0][-1].endswith("\\") and not commands[-1][1]:
            commands[-1][0].append(text[2:])
        else:
            commands[-1][1].append(text)
    if not commands:
        raise FormatError(f"{path}:{line}: a console block has no command")
    return Block(line, tuple(Command("\n".join(lines), tuple(output)) for lines, output in commands), words)


def differs(expected: Sequence[str], printed: Sequence[str], *, unordered: bool = False) -> str | None:
    """What of an expected output was not printed so, as one sentence; None when all is as expected.

    Blanks count as one, and those at the end of a line or of the output not at all: columns are as wide as names.
    """
    wanted, seen = _lines(expected), _lines(printed)
    if unordered:
        return _differs_unordered(wanted, seen)
    return None if _matches(wanted, seen) else _first_difference(wanted, seen)


def _lines(lines: Sequence[str]) -> list[str]:
    tidy = [re.sub(r"\s+", " ", line).strip() for line in lines]
    while tidy and not tidy[-1]:
        tidy.pop()
    return tidy


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.split(ANYTHING)))


def _matches(wanted: Sequence[str], seen: Sequence[str]) -> bool:
    """Whether all lines match; `reachable`: how many seen lines may be used up by the wanted ones so far."""
    reachable = {0}
    for line in wanted:
        if line == ANYTHING:
            reachable = set(range(min(reachable), len(seen) + 1))
        else:
            pattern = _pattern(line)
            reachable = {at + 1 for at in reachable if at < len(seen) and pattern.fullmatch(seen[at])}
        if not reachable:
            return False
    return len(seen) in reachable


def _first_difference(wanted: Sequence[str], seen: Sequence[str]) -> str:
    for count in range(len(wanted), 0, -1):
        if _matches([*wanted[: count - 1], ANYTHING], seen):
            return f"expected the line {wanted[count - 1]!r}, and saw {list(seen)!r}"
    return f"expected nothing, and saw {list(seen)!r}"


def _differs_unordered(wanted: Sequence[str], seen: Sequence[str]) -> str | None:
    left = list(seen)
    # Lines that say most first, so that they are not used up by those that say less.
    for line in sorted((line for line in wanted if line != ANYTHING), key=lambda line: line.count(ANYTHING)):
        match = next((one for one in left if _pattern(line).fullmatch(one)), None)
        if match is None:
            return f"expected the line {line!r}, and saw {list(seen)!r}"
        left.remove(match)
    return f"did not expect {left!r}" if left and ANYTHING not in wanted else None
