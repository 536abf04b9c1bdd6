"""The words of an iptables rule, and which module each option belongs to.

What belongs here: splitting and quoting as iptables-save and iptables-restore do; grouping options by `-m` and `-j`.
What does not: what an option means (`iptables_matches`, `iptables_targets`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_PLAIN = re.compile(r"[-_0-9A-Za-z./:,\[\]!+@%=()*#~^&|<>?;{}$`]+")
_OPTION = re.compile(r"--?[A-Za-z]")
_OWN = frozenset(
    ("-s", "-d", "-i", "-o", "-p", "-f", "--source", "--destination", "--in-interface", "--out-interface", "--protocol")
)
# How many arguments an option takes; those not told here take all up to the next option. A comment may look like one.
_ARITY = {
    **dict.fromkeys(("-s", "-d", "-i", "-o", "-p", "--dport", "--sport", "--comment", "--ctstate", "--mark"), 1),
    **dict.fromkeys(("--dports", "--sports", "--ports", "--to-destination", "--to-source", "--probability"), 1),
    **dict.fromkeys(("--set-xmark", "--set-mark", "--dst-type", "--src-type", "--mode", "--log-prefix", "--mask"), 1),
    **dict.fromkeys(("--name", "--seconds", "--hitcount"), 1),
    **dict.fromkeys(("--tcp-flags", "--match-set"), 2),
    **dict.fromkeys(("-f", "--syn", "--rcheck", "--reap", "--rsource", "--rdest", "--random", "--random-fully"), 0),
}


class Option(NamedTuple):
    """One option of a match or target, as written: `! --name arguments`."""

    name: str
    arguments: list[str]
    negated: bool

    def text(self) -> str:
        """The option's words, quoted where needed."""
        return " ".join(["!"] * self.negated + [self.name, *map(quote, self.arguments)])


class Group(NamedTuple):
    """A module and its options, in order: `-m recent --rcheck --seconds 60`. "" is for iptables' own (`-s`, `-i` …)."""

    module: str
    options: list[Option]

    def text(self) -> str:
        """The words of the rule for this module."""
        return " ".join([self.module, *(option.text() for option in self.options)]).strip()


def split_words(line: str) -> list[str]:
    r"""The words of a line as iptables-restore splits them: by blanks, but not inside of "…", where \ escapes."""
    if "\\" not in line:
        pieces = line.split('"')
        if len(pieces) == 1:
            return line.split()
        if len(pieces) == 3:  # one quoted word, the comment: by far the most frequent case
            return [*pieces[0].split(), pieces[1], *pieces[2].split()]
    return [bare or _ESCAPE.sub(r"\1", quoted) for quoted, bare in _WORD.findall(line)]


def quote(word: str) -> str:
    """A word as iptables-save writes it (iptables libxtables/xtables.c, xtables_save_string)."""
    return word if _PLAIN.fullmatch(word) else '"' + re.sub(r"""(["\\'])""", r"\\\1", word) + '"'


def group_options(words: list[str]) -> tuple[list[Group], tuple[str, Group] | None]:
    """The words after `-A CHAIN`, by module, in order; and (`-j` or `-g`, the target with its options)."""
    groups: list[Group] = []
    target: tuple[str, Group] | None = None
    current = implied = Group("", [])  # implied: what -p loads (`-p tcp --dport 80` needs no -m tcp); told when used
    negated = False
    index, count = 0, len(words)
    while index < count:
        word = words[index]
        index += 1
        if word == "!":
            negated = True
        elif word == "-m" or word == "-j" or word == "-g":
            current = Group(words[index] if index < count else "", [])
            index += 1
            if word == "-m":
                groups.append(current)
            else:
                target = (word, current)
        else:
            end = _end(words, word, index, count)
            option = Option(word, words[index:end], negated)
            index, negated = end, False
            if word in _OWN:
                groups.append(Group("", [option]))
                if word == "-p" or word == "--protocol":
                    current = implied = Group("".join(option.arguments), [])
            else:
                if current is implied and not current.options:
                    groups.append(current)
                current.options.append(option)
    return groups, target


def _end(words: list[str], option: str, index: int, count: int) -> int:
    """Where the arguments of `option`, which begin at index, end."""
    arity = _ARITY.get(option)
    if arity is not None:
        return index + arity
    while index < count and words[index] != "!" and not _OPTION.match(words[index]):
        index += 1
    return index
