"""The walk itself: verdicts and jumps, the order of hooks and chains, translation, chance, and what can't be told."""

from __future__ import annotations

import time

import pytest

from tests.tracer.rules.explaining import NODE, POD, ask, nft, path, save, shares, together
from tracer.rules.files import read_text
from tracer.rules.model import RuleSet
from tracer.rules.walk import TooManyWays

FILTER = "filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
NAT = "nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
MANGLE = (
    "mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
    ":OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
)
RAW = "raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"


def chain(name: str, hook: str, priority: str, *rules: str, kind: str = "filter", policy: str = "accept") -> str:
    """A base chain in nft's words."""
    body = "\n".join(rules)
    return f"chain {name} {{\ntype {kind} hook {hook} priority {priority}; policy {policy};\n{body}\n}}\n"


class TestVerdicts:
    def test_no_rules_at_all(self) -> None:
        told = ask(RuleSet())
        assert (told.verdict, told.steps, told.backends, told.service) == ("untouched", (), (), None)
        assert told.shares == {"untouched": 1.0}

    def test_accept_is_told_from_untouched(self) -> None:
        assert ask(save(FILTER + "-A OUTPUT -p tcp -j ACCEPT")).verdict == "accept"
        assert ask(save(FILTER + "-A OUTPUT -p udp -j ACCEPT")).verdict == "untouched"

    def test_policy_drops(self) -> None:
        told = ask(save(FILTER.replace(":OUTPUT ACCEPT", ":OUTPUT DROP") + "-A OUTPUT -p udp -j ACCEPT"))
        assert told.verdict == "drop"
        assert [(step.chain, step.rule, step.text) for step in told.steps] == [("OUTPUT", None, "policy drop")]

    def test_return_in_a_base_chain_leaves_it_to_the_policy(self) -> None:
        told = ask(save(FILTER.replace(":OUTPUT ACCEPT", ":OUTPUT DROP") + "-A OUTPUT -j RETURN\n-A OUTPUT -j ACCEPT"))
        assert (told.verdict, path(told)) == ("drop", ["OUTPUT 1 return", "OUTPUT None drop"])

    def test_accept_in_one_chain_does_not_save_from_another(self) -> None:
        first = chain("first", "output", "0", "accept")
        told = ask(nft(f"table ip t {{\n{first}{chain('second', 'output', '1', 'drop')}}}"))
        assert (told.verdict, path(told)) == ("drop", ["first 1 accept", "second 1 drop"])

    def test_drop_is_final(self) -> None:
        second = chain("second", "output", "1", "accept")
        told = ask(nft(f"table ip t {{\n{chain('first', 'output', '0', 'drop')}{second}}}"))
        assert path(told) == ["first 1 drop"]

    def test_reject_tells_how(self) -> None:
        told = ask(save(FILTER + "-A OUTPUT -p tcp -j REJECT --reject-with tcp-reset"))
        assert told.verdict == "reject"
        assert told.steps[0].verdict is not None
        assert told.steps[0].verdict.reason == "tcp-reset"

    def test_a_reset_is_for_tcp_only(self) -> None:
        """nft leaves `meta l4proto tcp` out of its text before `reject with tcp reset`."""
        rules = nft(f"table ip t {{\n{chain('c', 'output', '0', 'reject with tcp reset')}}}")
        assert ask(rules, protocol="TCP").verdict == "reject"
        assert ask(rules, protocol="UDP").verdict == "untouched"


class TestJumps:
    def test_jump_comes_back_and_goto_does_not(self) -> None:
        jump = FILTER + ":A - [0:0]\n-A OUTPUT -j A\n-A OUTPUT -j DROP\n-A A -j RETURN"
        assert ask(save(jump)).verdict == "drop"
        goto = jump.replace("-A OUTPUT -j A", "-A OUTPUT -g A")
        assert ask(save(goto)).verdict == "untouched"

    def test_goto_returns_to_the_last_jump(self) -> None:
        told = ask(
            save(
                FILTER + ":A - [0:0]\n:B - [0:0]\n-A OUTPUT -j A\n-A OUTPUT -j DROP\n-A A -g B\n-A A -j ACCEPT\n"
                "-A B -m mark --mark 0x1 -j ACCEPT"
            )
        )
        assert told.verdict == "drop"

    def test_a_goto_that_leads_away_is_a_step(self) -> None:
        """Although nothing happens where it leads: the rest of the chain is not met."""
        told = ask(save(FILTER + ":A - [0:0]\n-A OUTPUT -g A\n-A OUTPUT -j DROP"))
        assert (told.verdict, path(told)) == ("untouched", ["OUTPUT 1 goto"])

    def test_jumps_in_vain_are_no_steps(self) -> None:
        told = ask(save(FILTER + ":A - [0:0]\n:B - [0:0]\n-A OUTPUT -j A\n-A A -j B\n-A B -p udp -j DROP"))
        assert told.steps == ()
        assert [(visit.chain, visit.passed) for visit in told.visited] == [("B", 1), ("A", 0), ("OUTPUT", 0)]

    def test_order_of_steps_is_the_order_of_meeting(self) -> None:
        told = ask(
            save(
                FILTER + ":A - [0:0]\n:B - [0:0]\n-A OUTPUT -j A\n-A OUTPUT -p udp -j DROP\n-A OUTPUT -j B\n"
                "-A A -j RETURN\n-A B -p tcp -j ACCEPT"
            )
        )
        assert path(told) == ["OUTPUT 1 jump", "A 1 return", "OUTPUT 3 jump", "B 1 accept"]

    def test_missing_chain(self) -> None:
        told = ask(nft(f"table ip t {{\n{chain('c', 'output', '0', 'jump nowhere', 'drop')}}}"))
        assert path(told) == ["c 1 missing", "c 2 drop"]
        assert told.notes == ("chain c leads to nowhere, which table t does not have",)

    def test_missing_chain_of_iptables_may_be_a_target(self) -> None:
        told = ask(save(FILTER + "-A OUTPUT -j KUBE-GONE\n-A OUTPUT -p tcp -j ACCEPT"))
        assert (told.verdict, path(told)) == ("accept", ["OUTPUT 1 depends", "OUTPUT 2 accept"])
        assert [other.verdict for other in told.otherwise] == ["drop"]
        assert "KUBE-GONE is neither a chain of table filter nor a target that we know" in told.notes[0]

    @pytest.mark.parametrize("flag", ["-j", "-g"])
    def test_a_chain_that_leads_to_itself(self, flag: str) -> None:
        told = ask(save(FILTER + f":A - [0:0]\n-A OUTPUT -j A\n-A A {flag} A\n-A A -j DROP"))
        assert path(told) == ["OUTPUT 1 jump", "A 1 loop", "A 2 drop"]
        assert told.notes == ("chains lead in a circle (A → A), which the kernel refuses to load",)

    def test_a_circle_of_three(self) -> None:
        text = FILTER + ":A - [0:0]\n:B - [0:0]\n:C - [0:0]\n-A OUTPUT -j A\n-A A -j B\n-A B -j C\n-A C -j A"
        assert ask(save(text)).notes == ("chains lead in a circle (A → B → C → A), which the kernel refuses to load",)

    @pytest.mark.parametrize(("levels", "followed"), [(16, True), (17, False)])
    def test_nf_tables_follows_16_jumps(self, levels: int, followed: bool) -> None:
        chains = "".join(f"chain c{level} {{\njump c{level + 1}\n}}\n" for level in range(1, levels))
        text = chain("c0", "output", "0", "jump c1") + chains + f"chain c{levels} {{\ndrop\n}}\n"
        told = ask(nft(f"table ip t {{\n{text}}}"))
        assert told.verdict == ("drop" if followed else "untouched")
        assert bool(told.notes) is not followed

    def test_legacy_follows_more(self) -> None:
        chains = "".join(f":C{level} - [0:0]\n" for level in range(101))
        rules = "".join(f"-A C{level} -j C{level + 1}\n" for level in range(100))
        assert ask(save(FILTER + chains + "-A OUTPUT -j C0\n" + rules + "-A C100 -j DROP")).verdict == "drop"

    def test_deeper_ones_are_told(self) -> None:
        chains = "".join(f":C{level} - [0:0]\n" for level in range(401))
        rules = "".join(f"-A C{level} -j C{level + 1}\n" for level in range(400))
        told = ask(save(FILTER + chains + "-A OUTPUT -j C0\n" + rules + "-A C400 -j DROP"))
        assert (told.verdict, told.steps[-1].effect) == ("untouched", "loop")
        assert told.notes == ("chains lead on from each other more than 110 deep at C110",)

    def test_jumps_that_double_at_each_level_take_no_time(self) -> None:
        """The kernel walks 2^60 ways here; for us, equal walks are one."""
        chains = "".join(f":C{level} - [0:0]\n" for level in range(61))
        rules = "".join(f"-A C{level} -j C{level + 1}\n" * 2 for level in range(60))
        began = time.monotonic()
        told = ask(save(FILTER + chains + "-A OUTPUT -j C0\n" + rules + "-A C60 -p udp -j DROP\n"), protocol="TCP")
        assert time.monotonic() - began < 2.0
        assert told.verdict == "untouched"
        told = ask(save(FILTER + chains + "-A OUTPUT -j C0\n" + rules + "-A C60 -j MARK --set-mark 1"))
        assert told.verdict == "untouched"


class TestOrder:
    HOOKS = ("raw", "mangle", "nat", "filter")

    def test_from_elsewhere_to_elsewhere(self) -> None:
        assert self.order(POD, "10.96.0.1:80") == [
            "raw PREROUTING", "mangle PREROUTING", "nat PREROUTING", "mangle FORWARD", "filter FORWARD",
            "mangle POSTROUTING", "nat POSTROUTING",
        ]  # fmt: skip

    def test_from_elsewhere_to_this_node(self) -> None:
        assert self.order(POD, f"{NODE}:80") == [
            "raw PREROUTING", "mangle PREROUTING", "nat PREROUTING", "mangle INPUT", "filter INPUT", "nat INPUT",
        ]  # fmt: skip

    def test_from_this_node(self) -> None:
        assert self.order(None, "10.96.0.1:80") == [
            "raw OUTPUT", "mangle OUTPUT", "nat OUTPUT", "filter OUTPUT", "mangle POSTROUTING", "nat POSTROUTING",
        ]  # fmt: skip

    def test_from_this_node_to_itself(self) -> None:
        """By loopback, whose packets are translated only once."""
        assert self.order(None, f"{NODE}:80") == [
            "raw OUTPUT", "mangle OUTPUT", "nat OUTPUT", "filter OUTPUT", "mangle POSTROUTING", "nat POSTROUTING",
            "raw PREROUTING", "mangle PREROUTING", "mangle INPUT", "filter INPUT",
        ]  # fmt: skip

    def order(self, source: str | None, destination: str) -> list[str]:
        texts = [
            table + "".join(f"-A {line[1:].split()[0]} -j LOG\n" for line in table.splitlines()[1:])
            for table in (FILTER, NAT, MANGLE, RAW)
        ]
        told = ask(save(*texts), destination, source)
        return [f"{step.table.name} {step.chain}" for step in told.steps if step.effect == "log"]

    def test_engines_together_by_priority(self) -> None:
        nft_chains = "".join(
            chain(f"at{priority}", "output", str(priority), 'log prefix "x"') for priority in (-301, -151, -99, 1)
        )
        legacy = save(*(f"{table}-A OUTPUT -j LOG" for table in (FILTER, NAT, MANGLE, RAW)))
        told = ask(together(nft(f"table inet t {{\n{nft_chains}}}"), legacy))
        assert [f"{step.table.name} {step.chain}" for step in told.steps] == [
            "t at-301", "raw OUTPUT", "t at-151", "mangle OUTPUT", "nat OUTPUT", "t at-99", "filter OUTPUT", "t at1",
        ]  # fmt: skip

    def test_nat_chains_run_where_all_nat_runs(self) -> None:
        """Whatever priority of its own a chain of type nat has (Linux net/netfilter/nf_nat_core.c)."""
        late = chain("late", "output", "50", "dnat to 10.0.0.1:80", kind="nat")
        early = chain("early", "output", "-90", 'ip daddr 10.0.0.1 log prefix "x"')
        told = ask(nft(f"table ip t {{\n{late}{early}}}"))
        assert path(told) == ["late 1 dnat", "early 1 log"]

    def test_connection_tracking_comes_behind_raw(self) -> None:
        raw = "-A OUTPUT -m conntrack --ctstate NEW -j DROP\n-A OUTPUT -m conntrack --ctstate INVALID -j LOG\n"
        mangle = "-A OUTPUT -m conntrack --ctstate INVALID -j DROP\n-A OUTPUT -m conntrack --ctstate NEW -j LOG\n"
        told = ask(save(RAW + raw, MANGLE + mangle))
        assert path(told) == ["OUTPUT 2 log", "OUTPUT 2 log"]

    @pytest.mark.parametrize("target", ["CT --notrack", "NOTRACK"])
    def test_untracked_packets_are_not_translated(self, target: str) -> None:
        raw = RAW + f"-A OUTPUT -d 10.96.0.1/32 -j {target}"
        nat = NAT + "-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.1:80"
        told = ask(save(raw, nat, FILTER + "-A OUTPUT -m conntrack --ctstate UNTRACKED -j ACCEPT"))
        assert (told.verdict, told.backends) == ("accept", ())
        assert ask(save(raw, nat), "10.96.0.2:80").verdict == "dnat"

    def test_nothing_at_a_device_is_followed_in_silence(self) -> None:
        text = (
            'table netdev t {\nchain c {\ntype filter hook ingress device "eth0" priority 0; policy accept;\ndrop\n}\n}'
        )
        told = ask(nft(text))
        assert (told.verdict, told.notes) == (
            "untouched",
            ("chain c of table netdev t, at a device itself, is not followed",),
        )


class TestTranslation:
    def test_later_hooks_see_the_new_destination(self) -> None:
        nat = NAT + "-A PREROUTING -d 10.96.0.1/32 -p tcp -j DNAT --to-destination 10.0.0.9:8080"
        rules = FILTER + (
            "-A FORWARD -d 10.96.0.1/32 -j DROP\n-A FORWARD -p tcp -m tcp --dport 80 -j DROP\n"
            "-A FORWARD -d 10.0.0.9/32 -p tcp -m tcp --dport 8080 -m conntrack --ctstate DNAT --ctorigdst 10.96.0.1 "
            "--ctorigdstport 80 --ctreplsrc 10.0.0.9 -j ACCEPT\n-A FORWARD -j DROP"
        )
        told = ask(save(nat, rules), source=POD)
        assert (told.verdict, shares(told)) == ("dnat", {"10.0.0.9:8080": 1.0})
        assert path(told) == ["PREROUTING 1 dnat", "FORWARD 3 accept"]

    def test_routing_sees_the_new_destination(self) -> None:
        nat = NAT + f"-A PREROUTING -d 10.96.0.1/32 -p tcp -j DNAT --to-destination {NODE}:80"
        told = ask(save(nat, FILTER + "-A INPUT -p tcp -j DROP"), source=POD)
        assert told.verdict == "drop"
        assert [(backend.ip, backend.verdict) for backend in told.backends] == [(NODE, "drop")]

    def test_address_only_keeps_the_port_and_the_reverse(self) -> None:
        nat = NAT + "-A OUTPUT -d 10.96.0.1/32 -p tcp -j DNAT --to-destination "
        assert shares(ask(save(nat + "10.0.0.9"))) == {"10.0.0.9:80": 1.0}
        assert shares(ask(save(nat + ":81"))) == {"10.96.0.1:81": 1.0}

    def test_the_first_translation_counts(self) -> None:
        """nat's second chain sees only what the first left alone."""
        one = chain(
            "one", "output", "-100", "ip daddr 10.96.0.1 dnat to 10.0.0.1", "ip daddr 10.96.0.2 accept", kind="nat"
        )
        two = chain("two", "output", "-90", "dnat to 10.0.0.2", kind="nat")
        rules = nft(f"table ip t {{\n{one}{two}}}")
        assert shares(ask(rules, "10.96.0.1:80")) == {"10.0.0.1:80": 1.0}
        assert shares(ask(rules, "10.96.0.2:80")) == {"10.0.0.2:80": 1.0}
        assert shares(ask(rules, "10.96.0.3:80")) == {"10.0.0.2:80": 1.0}

    def test_ranges(self) -> None:
        nat = NAT + "-A OUTPUT -d 10.96.0.1/32 -p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.4"
        told = ask(save(nat))
        assert shares(told) == {f"10.0.0.{number}:80": 0.25 for number in (1, 2, 3, 4)}
        assert "each client keeps its one" in told.notes[0]

    def test_a_port_within_the_range_stays(self) -> None:
        nat = NAT + "-A OUTPUT -d 10.96.0.1/32 -p tcp -j DNAT --to-destination 10.0.0.1:"
        assert shares(ask(save(nat + "79-90"))) == {"10.0.0.1:80": 1.0}
        assert shares(ask(save(nat + "90-91"))) == {"10.0.0.1:90": 1.0}
        assert shares(ask(save(nat + "90-91 --random"))) == {"10.0.0.1:90": 0.5, "10.0.0.1:91": 0.5}

    def test_redirect(self) -> None:
        rules = NAT + "-A OUTPUT -d 10.96.0.1/32 -p tcp -j REDIRECT --to-ports 15001"
        assert shares(ask(save(rules, FILTER + "-A INPUT -i lo -p tcp -m tcp --dport 15001 -j ACCEPT"))) == {
            "127.0.0.1:15001": 1.0
        }
        told = ask(save(rules.replace("OUTPUT -d", "PREROUTING -d"), FILTER + "-A INPUT -j ACCEPT"), source=POD)
        assert (shares(told), path(told)[-1]) == ({f"{NODE}:15001": 1.0}, "INPUT 1 accept")

    def test_netmap(self) -> None:
        rules = NAT + "-A OUTPUT -d 10.96.0.0/16 -j NETMAP --to 10.128.0.0/16"
        assert shares(ask(save(rules), "10.96.3.4:80")) == {"10.128.3.4:80": 1.0}

    def test_masquerade_and_its_reason(self) -> None:
        nat = NAT + "-A POSTROUTING -s 10.244.0.0/16 ! -o cni0 -j MASQUERADE"
        told = ask(save(nat), source=POD, out_device="eth0")
        assert (told.verdict, told.masquerade, [step.text for step in told.masquerade_why]) == (
            "accept",
            True,
            ["-A POSTROUTING -s 10.244.0.0/16 ! -o cni0 -j MASQUERADE"],
        )
        assert ask(save(nat), source=POD, out_device="cni0").masquerade is False

    def test_marks_lead_to_masquerading(self) -> None:
        nat = NAT + (
            ":MARK-IT - [0:0]\n-A PREROUTING ! -s 10.244.0.0/16 -j MARK-IT\n"
            "-A MARK-IT -j MARK --set-xmark 0x4000/0x4000\n"
            "-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MARK --set-xmark 0x4000/0x0\n"
            "-A POSTROUTING -j MASQUERADE"
        )
        told = ask(save(nat), source="192.0.2.9")
        assert [f"{step.chain} {step.rule}" for step in told.masquerade_why] == [
            "PREROUTING 1",
            "MARK-IT 1",
            "POSTROUTING 3",
        ]
        assert ask(save(nat), source=POD).masquerade is False

    def test_snat(self) -> None:
        told = ask(save(NAT + "-A POSTROUTING -p tcp -j SNAT --to-source 192.0.2.1"), source=POD)
        assert (told.verdict, told.masquerade) == ("accept", True)

    def test_map_of_addresses(self) -> None:
        rule = "dnat to numgen random mod 4 map { 0-2 : 10.0.0.1, 3 : 10.0.0.2 }"
        told = ask(nft(f"table ip t {{\n{chain('c', 'output', '-100', rule, kind='nat')}}}"))
        assert shares(told) == {"10.0.0.1:80": 0.75, "10.0.0.2:80": 0.25}

    def test_translation_of_the_other_family(self) -> None:
        rules = chain("c", "output", "-100", "dnat ip to 10.0.0.1", "dnat ip6 to fd00::1", kind="nat")
        assert shares(ask(nft(f"table inet t {{\n{rules}}}"), "[fd00:96::1]:80")) == {"fd00::1:80": 1.0}
        assert shares(ask(nft(f"table inet t {{\n{rules}}}"))) == {"10.0.0.1:80": 1.0}


class TestMarks:
    @pytest.mark.parametrize(
        ("target", "wanted"),
        [
            ("--set-xmark 0x4000/0x4000", 0x4001),
            ("--set-xmark 0x3/0xff", 0x3),
            ("--set-mark 0x8", 0x8),
            ("--or-mark 0x8", 0x9),
            ("--and-mark 0xfffffffe", 0x0),
            ("--xor-mark 0x3", 0x2),
        ],
    )
    def test_each_way_to_mark(self, target: str, wanted: int) -> None:
        rules = MANGLE + (
            "-A OUTPUT -j MARK --set-mark 0x1\n"
            f"-A OUTPUT -j MARK {target}\n-A OUTPUT -m mark --mark {wanted:#x} -j DROP"
        )
        assert ask(save(rules)).verdict == "drop"

    def test_connection_marks_are_saved_and_restored(self) -> None:
        rules = MANGLE + (
            "-A OUTPUT -j MARK --set-mark 0x5\n"
            "-A OUTPUT -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n"
            "-A OUTPUT -j MARK --set-mark 0x0\n-A OUTPUT -m connmark ! --mark 0x5 -j DROP\n"
            "-A POSTROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0x4\n"
            "-A POSTROUTING -m mark --mark 0x4 -j ACCEPT\n-A POSTROUTING -j DROP"
        )
        assert ask(save(rules)).verdict == "accept"

    def test_nft_copies_between_them(self) -> None:
        rules = chain(
            "c", "output", "0", "meta mark set 0x00000007", "ct mark set meta mark", "meta mark set 0x00000000"
        )
        rules += chain("d", "postrouting", "0", "meta mark set ct mark", "meta mark 0x00000007 drop")
        assert ask(nft(f"table ip t {{\n{rules}}}")).verdict == "drop"


class TestChance:
    def test_shares_compound(self) -> None:
        nat = (
            NAT
            + ":S - [0:0]\n-A OUTPUT -d 10.96.0.1/32 -j S\n"
            + "".join(
                f"-A S {chance}-p tcp -j DNAT --to-destination 10.0.0.{number}:80\n"
                for number, chance in enumerate(
                    (
                        "-m statistic --mode random --probability 0.33333333349 ",
                        "-m statistic --mode random --probability 0.5 ",
                        "",
                    )
                )
            )
        )
        told = ask(save(nat))
        assert shares(told) == {"10.0.0.0:80": 0.333333, "10.0.0.1:80": 0.333333, "10.0.0.2:80": 0.333333}
        assert sum(backend.probability for backend in told.backends) == pytest.approx(1.0, abs=1e-12)

    def test_negated_chance_and_turns(self) -> None:
        nat = NAT + (
            "-A OUTPUT -p tcp -m statistic --mode random ! --probability 0.75 -j DNAT --to-destination 10.0.0.1:80\n"
            "-A OUTPUT -p tcp -m statistic --mode nth --every 3 --packet 0 -j DNAT --to-destination 10.0.0.2:80\n"
            "-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.3:80"
        )
        assert shares(ask(save(nat))) == {"10.0.0.1:80": 0.25, "10.0.0.2:80": 0.25, "10.0.0.3:80": 0.5}

    def test_the_same_counter_twice_is_not_chance(self) -> None:
        """A packet that took its turn comes at the next one then, and not at any."""
        rule = "-A A -m statistic --mode nth --every 2 --packet 0 -j MARK --or-mark 0x1"
        rules = (
            MANGLE
            + f":A - [0:0]\n{rule}\n-A OUTPUT -j A\n-A POSTROUTING -j A\n-A POSTROUTING -m mark ! --mark 0x0 -j DROP"
        )
        told = ask(save(rules))
        assert [(step.hook, step.on) for step in told.depends] == [("postrouting", ("whose turn it is, one of 2",))]
        assert "several rules take packets in turn" in told.notes[0]

    def test_turns_one_behind_the_other_are_shares(self) -> None:
        nat = NAT + "".join(
            f"-A OUTPUT -p tcp -m statistic --mode nth --every {left} --packet 0 -j DNAT "
            f"--to-destination 10.0.0.{left}:80\n"
            for left in (3, 2, 1)
        )
        told = ask(save(nat))
        assert shares(told) == {f"10.0.0.{number}:80": 0.333333 for number in (3, 2, 1)}
        assert (told.notes, told.depends) == ((), ())

    def test_what_is_not_translated_is_told(self) -> None:
        nat = (
            NAT + "-A OUTPUT -p tcp -m statistic --mode random --probability 0.25 -j DNAT --to-destination 10.0.0.1:80"
        )
        told = ask(save(nat))
        assert (told.verdict, told.shares) == ("dnat", {"dnat": 0.25, "untouched": 0.75})
        assert shares(told) == {"10.0.0.1:80": 1.0}  # of those that are translated

    def test_a_backend_that_is_refused_is_told(self) -> None:
        nat = NAT + (
            "-A OUTPUT -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.1:80\n"
            "-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.2:80"
        )
        told = ask(save(nat, FILTER + "-A OUTPUT -d 10.0.0.2/32 -j REJECT"))
        assert (told.verdict, told.shares) == ("dnat", {"dnat": 0.5, "reject": 0.5})
        assert [(each.ip, each.probability, each.verdict) for each in told.backends] == [
            ("10.0.0.1", 0.5, "accept"),
            ("10.0.0.2", 0.5, "reject"),
        ]

    def test_numbers_of_a_verdict_map(self) -> None:
        rule = "numgen random mod 5 offset 10 vmap { 10-11 : goto a, 12 : goto b, 20 : drop }"
        text = (
            chain("c", "output", "-100", rule, kind="nat")
            + "chain a {\ndnat to 10.0.0.1\n}\nchain b {\ndnat to 10.0.0.2\n}\n"
        )
        told = ask(nft(f"table ip t {{\n{text}}}"))
        assert told.shares == pytest.approx({"dnat": 0.6, "untouched": 0.4})
        assert shares(told) == {"10.0.0.1:80": 0.666667, "10.0.0.2:80": 0.333333}

    def test_ways_that_meet_again_are_one(self) -> None:
        """Or else 40 rules by chance would make 2^40 ways."""
        rules = FILTER + "-A OUTPUT -m statistic --mode random --probability 0.5 -j LOG\n" * 40 + "-A OUTPUT -j DROP"
        told = ask(save(rules))
        assert told.shares == {"drop": pytest.approx(1.0)}
        assert told.steps[39].probability == pytest.approx(0.5)

    def test_too_many_ways_are_refused(self) -> None:
        rules = MANGLE + "".join(
            f"-A OUTPUT -m statistic --mode random --probability 0.5 -j MARK --xor-mark {1 << bit:#x}\n"
            for bit in range(20)
        )
        with pytest.raises(TooManyWays, match="OUTPUT mark packets at random in more than 20000 ways"):
            ask(save(rules))

    @pytest.mark.parametrize("form", ["iptables", "nftables"])
    def test_a_thousand_endpoints(self, form: str, patience: float) -> None:
        rules = _endpoints(1000) if form == "iptables" else _nft_endpoints(1000)
        began = time.process_time()
        told = ask(rules, source=POD)
        assert time.process_time() - began < 1.0 * patience
        assert [backend.probability for backend in told.backends] == pytest.approx([0.001] * 1000, rel=1e-6)
        assert sum(backend.probability for backend in told.backends) == pytest.approx(1.0, abs=1e-12)

    def test_a_long_map_is_not_told_again_for_each_endpoint(self) -> None:
        told = ask(_nft_endpoints(1000), source=POD)
        choice = [step for step in told.steps if step.effect == "goto"]
        assert (len(choice), choice[7].text) == (
            1000,
            "ip daddr 10.96.0.1 numgen random mod 1000 vmap { …, 7 : goto e7, … }",
        )
        few = ask(_nft_endpoints(2), source=POD).steps[0]
        assert few.text == "ip daddr 10.96.0.1 numgen random mod 2 vmap { 0 : goto e0, 1 : goto e1 }"


def _endpoints(count: int) -> RuleSet:
    lines = [f":E{number} - [0:0]" for number in range(count)]
    lines += [":S - [0:0]", "-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j S"]
    for number in range(count):
        left = count - number
        chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        ip = f"10.0.{number // 256}.{number % 256}"
        lines += [f"-A S {chance}-j E{number}", f"-A E{number} -s {ip}/32 -j MARK --set-mark 1"]
        lines.append(f"-A E{number} -p tcp -j DNAT --to-destination {ip}:8080")
    refused = "".join(f"-A FORWARD -d 10.97.{n // 256}.{n % 256}/32 -p tcp -j REJECT\n" for n in range(1000))
    return save(NAT + "\n".join(lines), FILTER + refused)


def _nft_endpoints(count: int) -> RuleSet:
    ips = [f"10.0.{number // 256}.{number % 256}" for number in range(count)]
    verdicts = ", ".join(f"{number} : goto e{number}" for number in range(count))
    chains = "".join(
        f"chain e{number} {{\nip saddr {ip} meta mark set 0x1\nmeta l4proto tcp dnat to {ip}:8080\n}}\n"
        for number, ip in enumerate(ips)
    )
    rule = f"ip daddr 10.96.0.1 numgen random mod {count} vmap {{ {verdicts} }}"
    text = chain("c", "prerouting", "dstnat", rule, kind="nat") + chains
    return nft(f"table ip t {{\n{text}}}")


class TestWhatCantBeTold:
    def test_both_ways_are_told(self) -> None:
        nat = NAT + (
            "-A OUTPUT -p tcp -m set --match-set canary src -j DNAT --to-destination 10.0.0.1:80\n"
            "-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.2:80"
        )
        told = ask(save(nat))
        assert (told.verdict, shares(told)) == ("dnat", {"10.0.0.2:80": 1.0})
        assert [(other.verdict, other.ip, other.port) for other in told.otherwise] == [("dnat", "10.0.0.1", 80)]
        (step,) = told.depends
        assert (step.would, step.on, step.probability) == ("dnat", ("ipset src @canary",), 0.0)

    def test_its_own_words_are_told(self) -> None:
        told = ask(save(FILTER + "-A OUTPUT -m time --timestart 09:00:00 --timestop 17:00:00 -j DROP"))
        assert told.to_json()["depends"] == ["time --timestart 09:00:00 --timestop 17:00:00"]
        assert (told.verdict, [other.verdict for other in told.otherwise]) == ("untouched", ["drop"])

    def test_what_fails_otherwise_does_not_depend(self) -> None:
        told = ask(save(FILTER + "-A OUTPUT -p udp -m limit --limit 3/min -j DROP"), protocol="TCP")
        assert (told.steps, told.otherwise) == ((), ())

    def test_what_follows_in_the_chain_depends_too(self) -> None:
        told = ask(save(FILTER + ":A - [0:0]\n-A OUTPUT -m set --match-set x src -j A\n-A A -j DROP"))
        assert path(told) == ["OUTPUT 1 depends", "A 1 drop"]
        assert [step.probability for step in told.steps] == [0.0, 0.0]

    def test_a_jump_that_makes_no_difference_is_no_step(self) -> None:
        told = ask(save(FILTER + ":A - [0:0]\n-A OUTPUT -m set --match-set x src -j A\n-A A -p udp -j DROP"))
        assert (told.steps, told.depends, told.otherwise) == ((), (), ())

    def test_programs_decide(self) -> None:
        told = ask(save(FILTER + "-A OUTPUT -j NFQUEUE --queue-num 1\n-A OUTPUT -j DROP"))
        assert (told.verdict, [other.verdict for other in told.otherwise]) == ("accept", ["drop"])
        assert told.notes == ("NFQUEUE may do anything with the packet: told is what follows if it lets it through",)

    def test_statements_of_nft_that_we_do_not_know(self) -> None:
        told = ask(nft(f"table ip t {{\n{chain('c', 'output', '0', 'ip daddr 10.96.0.1 frobnicate to 7', 'accept')}}}"))
        assert (told.verdict, [other.verdict for other in told.otherwise]) == ("accept", ["drop"])
        assert told.depends[0].on == ("frobnicate to 7",)

    def test_a_map_that_is_not_there(self) -> None:
        told = ask(nft(f"table ip t {{\n{chain('c', 'output', '0', 'ip daddr vmap @gone', 'drop')}}}"))
        assert told.verdict == "drop"


class TestMemory:
    """recent and dynamic sets: a client that was not seen before, but for what this packet itself leaves there."""

    def test_affinity(self) -> None:
        nat = NAT + (
            ":S - [0:0]\n:E - [0:0]\n-A OUTPUT -d 10.96.0.1/32 -p tcp -j S\n"
            "-A S -m recent --rcheck --seconds 10800 --reap --name E --mask 255.255.255.255 --rsource -j E\n-A S -j E\n"
            "-A E -p tcp -m recent --set --name E --mask 255.255.255.255 --rsource -m tcp -j DNAT "
            "--to-destination 10.0.0.1:80"
        )
        told = ask(save(nat))
        assert (told.affinity_seconds, shares(told)) == (10800, {"10.0.0.1:80": 1.0})

    def test_seen_by_an_earlier_rule(self) -> None:
        rules = FILTER + (
            "-A OUTPUT -m recent --set --name SSH --mask 255.255.255.255 --rsource\n"
            "-A OUTPUT -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource "
            "-j DROP\n"
            "-A OUTPUT -m recent --rcheck --seconds 60 --name SSH --mask 255.255.255.255 --rsource -j REJECT"
        )
        assert ask(save(rules)).verdict == "reject"

    def test_dynamic_sets(self) -> None:
        rules = chain("c", "output", "0", "ip daddr @seen drop", "update @seen { ip daddr }", "ip daddr @seen reject")
        told = ask(nft(f"table ip t {{\nset seen {{\ntype ipv4_addr\nflags dynamic\n}}\n{rules}}}"))
        assert told.verdict == "reject"


def test_verdict_maps_and_concatenations() -> None:
    rules = chain(
        "c",
        "output",
        "0",
        "ip daddr . meta l4proto . th dport vmap @m",
        "ct state vmap { established : accept, new : drop }",
    )
    elements = "10.96.0.1 . tcp . 80 : goto a, 10.96.0.0/24 . tcp . 81-90 : jump a"
    kind = "ipv4_addr . inet_proto . inet_service : verdict"
    text = f"map m {{\ntype {kind}\nflags interval\nelements = {{ {elements} }}\n}}\n"
    both = nft(f"table ip t {{\n{text}{rules}chain a {{\nreturn\n}}\n}}")
    assert (ask(both).verdict, path(ask(both))) == ("untouched", ["c 1 goto", "a 1 return"])
    assert path(ask(both, "10.96.0.7:85")) == ["c 1 jump", "a 1 return", "c 2 drop"]
    assert path(ask(both, "10.96.0.7:80")) == ["c 2 drop"]


def test_rules_of_another_family_do_not_count() -> None:
    both = together(save(FILTER + "-A OUTPUT -j DROP"), save(FILTER + "-A OUTPUT -j REJECT", family=6))
    assert ask(both).verdict == "drop"
    assert ask(both, "[fd00::5]:80").verdict == "reject"


def test_plain_text_without_a_header_is_followed_too() -> None:
    rules = read_text("*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -m tcp --dport 80 -j DROP\nCOMMIT\n", "x")
    assert ask(rules).verdict == "drop"
