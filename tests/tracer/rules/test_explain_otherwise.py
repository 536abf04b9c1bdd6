"""What `explain` says of what it can't know: what depends on it, and in which words."""

from __future__ import annotations

import pytest

from tests.tracer.rules.explaining import ask, path, save
from tracer.explanation import lines
from tracer.rules.condition_words import condition_words
from tracer.rules.iptables_rule import parse_rule

MANGLE = "mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m length --length 0:99 -j MARK --set-xmark 0x1/0x1"
NAT = "nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m mark {sign}--mark 0x1/0x1 -j MASQUERADE"


@pytest.mark.parametrize("surely", [False, True])
def test_a_source_that_is_changed_as_it_depends(surely: bool) -> None:
    told = ask(save(MANGLE, NAT.format(sign="! " if surely else "")))
    assert told.masquerade is surely
    (other,) = told.otherwise
    assert tuple(other) == ("accept", "10.96.0.1", 80, not surely)
    text = "\n".join("".join(span[0] for span in line) for line in lines(told, 120))
    words = "with its source as it is" if surely else "with its source changed"
    assert f"or else accept to 10.96.0.1:80 {words}, as it depends" in text


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("-s 10.0.0.1", "ip saddr 10.0.0.1"),
        ("! -d 10.0.0.0/8", "ip daddr != 10.0.0.0/8"),
        ("-m iprange --src-range 10.0.0.1-10.0.0.9", "ip saddr 10.0.0.1-10.0.0.9"),
        ("-p udp -m multiport --dports 53,5353:5355", "th dport 53, 5353-5355"),
        ("-m mark --mark 0x4000/0x4000", "meta mark & 0x4000 0x4000"),
        ("-m conntrack ! --ctstate NEW,DNAT", "ct state != new, dnat"),
        ("-m set --match-set canary src", "ipset src @canary"),
        ("-m statistic --mode nth --every 3 --packet 0", "every"),
        ("-m time --timestart 09:00", "time --timestart 09:00"),
    ],
)
def test_words_of_a_condition(option: str, words: str) -> None:
    *_, condition = parse_rule(f"-A INPUT {option}", "ip", ()).conditions
    assert condition_words(condition) == words


def test_a_policy_that_no_packet_meets_is_no_step() -> None:
    told = ask(save("filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -p tcp -j ACCEPT"))
    assert path(told) == ["OUTPUT 1 accept"]
