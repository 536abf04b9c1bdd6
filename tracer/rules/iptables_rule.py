"""One rule of iptables, as iptables-save writes it (`-A CHAIN … -j TARGET`), turned into a `Rule`.

Every line gives a rule. What we do not know, or can't make sense of, becomes `Unknown` or `Other` with its own words,
so that newer versions of iptables, and modules that nobody told us of, are shown rather than refused.
"""

from __future__ import annotations

from collections.abc import Container

from tracer.rules.iptables_matches import conditions
from tracer.rules.iptables_targets import statement
from tracer.rules.iptables_words import group_options, split_words
from tracer.rules.model import Part, Rule


def parse_rule(line: str, family: str, chains: Container[str]) -> Rule:
    """The rule of one line, which may begin with counters. family: ip or ip6. chains: names of the table's chains."""
    words = split_words(line)
    groups, target = group_options(words[2 if words[0] == "-A" else 3 :])
    parts: list[Part] = []
    comment = None
    for group in groups:
        if group.module == "comment":
            comment = group.options[0].arguments[0] if group.options and group.options[0].arguments else None
        else:
            parts += conditions(group, family)
    if target is not None:
        flag, options = target
        parts.append(statement(flag, options, chains))
    return Rule(line, tuple(parts), comment)
