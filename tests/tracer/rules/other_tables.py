"""Tables that Docker, ufw and firewalld write, for the networks of `flows.world`, to be loaded for real.

What belongs here: their chains in their words. What does not: what must become of packets (`test_other_tables_live`).
Sources: libnetwork's drivers/bridge of Docker 27; /etc/ufw/*.rules and `ufw allow|limit|reject` of ufw 0.36;
firewalld's src/firewall/core/nftables.py of 1.3. Devices: eth0 outside, docker0 and br-5d3fc0ffee01 inside.
"""

from __future__ import annotations

DEVICES = {"outside": "eth0", "web": "docker0", "db": "br-5d3fc0ffee01"}

# docker run -p 8080:80 web; docker run --network shop -p 127.0.0.1:5432:5432 -p 5353:53/udp db; one rule of the admin's
DOCKER = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.0.3.0/24 ! -o br-5d3fc0ffee01 -j MASQUERADE
-A POSTROUTING -s 10.0.2.0/24 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.0.2.5/32 -d 10.0.2.5/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i br-5d3fc0ffee01 -j RETURN
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.2.5:80
-A DOCKER ! -i br-5d3fc0ffee01 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.0.3.5:53
-A DOCKER -d 127.0.0.1/32 ! -i br-5d3fc0ffee01 -p tcp -m tcp --dport 5432 -j DNAT --to-destination 10.0.3.5:5432
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br-5d3fc0ffee01 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-5d3fc0ffee01 -j DOCKER
-A FORWARD -i br-5d3fc0ffee01 ! -o br-5d3fc0ffee01 -j ACCEPT
-A FORWARD -i br-5d3fc0ffee01 -o br-5d3fc0ffee01 -j ACCEPT
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 10.0.2.5/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 10.0.3.5/32 ! -i br-5d3fc0ffee01 -o br-5d3fc0ffee01 -p udp -m udp --dport 53 -j ACCEPT
-A DOCKER -d 10.0.3.5/32 ! -i br-5d3fc0ffee01 -o br-5d3fc0ffee01 -p tcp -m tcp --dport 5432 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br-5d3fc0ffee01 ! -o br-5d3fc0ffee01 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br-5d3fc0ffee01 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -s 10.0.1.66/32 -i eth0 -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""

_UFW_HOOKS = ("input", "output", "forward")


def _ufw_skeleton() -> str:
    """The chains that ufw has whatever the user allows, and how the built-in ones enter them."""
    names = [
        f"ufw-{which}-{hook}"
        for which in ("before-logging", "before", "after", "after-logging", "reject", "track")
        for hook in _UFW_HOOKS
    ]
    others = [f"ufw-{which}-{hook}" for which in ("user", "skip-to-policy") for hook in _UFW_HOOKS]
    others += ["ufw-logging-deny", "ufw-logging-allow", "ufw-not-local", "ufw-user-limit", "ufw-user-limit-accept"]
    lines = ["*filter", ":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]"]
    lines += [f":{name} - [0:0]" for name in names + others]
    lines += [f"-A {name.rpartition('-')[2].upper()} -j {name}" for name in names]
    return "\n".join(lines) + "\n"


# ufw allow 22/tcp; ufw allow from 10.0.1.0/25 to any port 80,443 proto tcp; ufw limit 2222/tcp; ufw reject 23/tcp;
# ufw deny 2049; ufw route allow in on eth0 out on docker0 to 10.0.2.5 port 80 proto tcp; ufw deny out 25/tcp
UFW = (
    _ufw_skeleton()
    + """\
-A ufw-after-input -p udp -m udp --dport 137 -j ufw-skip-to-policy-input
-A ufw-after-input -p udp -m udp --dport 138 -j ufw-skip-to-policy-input
-A ufw-after-input -p tcp -m tcp --dport 139 -j ufw-skip-to-policy-input
-A ufw-after-input -p tcp -m tcp --dport 445 -j ufw-skip-to-policy-input
-A ufw-after-input -m addrtype --dst-type BROADCAST -j ufw-skip-to-policy-input
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-after-logging-input -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-before-output -o lo -j ACCEPT
-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-output -j ufw-user-output
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-skip-to-policy-forward -j DROP
-A ufw-skip-to-policy-input -j DROP
-A ufw-skip-to-policy-output -j ACCEPT
-A ufw-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT
-A ufw-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT
-A ufw-user-forward -d 10.0.2.5/32 -i eth0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -s 10.0.1.0/25 -p tcp -m multiport --dports 80,443 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 2222 -m conntrack --ctstate NEW -m recent --set --name DEFAULT --rsource
-A ufw-user-input -p tcp -m tcp --dport 2222 -m conntrack --ctstate NEW -m recent --update --seconds 30 --hitcount 6 \
--name DEFAULT --rsource -j ufw-user-limit
-A ufw-user-input -p tcp -m tcp --dport 2222 -j ufw-user-limit-accept
-A ufw-user-input -p tcp -m tcp --dport 23 -j REJECT --reject-with tcp-reset
-A ufw-user-input -p udp -m udp --dport 2049 -j DROP
-A ufw-user-limit -m limit --limit 3/min -j LOG --log-prefix "[UFW LIMIT BLOCK] "
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
-A ufw-user-limit-accept -j ACCEPT
-A ufw-user-output -p tcp -m tcp --dport 25 -j DROP
COMMIT
"""
)


def _zones(kind: str, hook: str, default: str, device: str = "iifname") -> str:
    """The chain in which firewalld finds the zone of a device. kind: filter or nat; hook: as it names its chains."""
    short = {"INPUT": "IN", "PREROUTING": "PRE", "POSTROUTING": "POST"}[hook]
    chain = f"{kind}_{short}_"
    return f"""
    chain {kind}_{hook}_ZONES {{
        {device} "docker0" goto {chain}docker
        {device} "br-*" goto {chain}internal
        {device} "eth0" goto {chain}{default}
        goto {chain}{default}
    }}"""


def _zone(chain: str, allow: str = "", end: str = "") -> str:
    """The chains of one zone: five steps, of which users fill `allow`."""
    steps = ("pre", "log", "deny", "allow", "post")
    jumps = "\n".join(f"        jump {chain}_{step}" for step in steps)
    chains = "".join(f"\n    chain {chain}_{step} {{\n{allow if step == 'allow' else ''}\n    }}" for step in steps)
    return f"\n    chain {chain} {{\n{jumps}\n{end}\n    }}{chains}"


_REJECT = "        meta l4proto { icmp, ipv6-icmp } accept\n        reject with icmpx admin-prohibited"
_ACCEPT = "        accept"

# In zone public: service ssh, ports 9000-9010/udp, masquerade, forward ports 8081 to 10.0.2.5:80 and 8443 to 443 of
# this machine; docker0 in zone docker (target ACCEPT), the other bridge in internal
FIREWALLD = (
    """\
table inet firewalld {
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        jump nat_PREROUTING_ZONES
    }"""
    + _zones("nat", "PREROUTING", "public")
    + _zone(
        "nat_PRE_public",
        "        meta nfproto ipv4 tcp dport 8081 dnat ip to 10.0.2.5:80\n        tcp dport 8443 redirect to :443",
    )
    + _zone("nat_PRE_docker")
    + _zone("nat_PRE_internal")
    + """
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        jump nat_POSTROUTING_ZONES
    }"""
    + _zones("nat", "POSTROUTING", "public", "oifname")
    + _zone("nat_POST_public", '        meta nfproto ipv4 oifname != "lo" masquerade')
    + _zone("nat_POST_docker")
    + _zone("nat_POST_internal")
    + """
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }"""
    + _zones("filter", "INPUT", "public")
    + _zone(
        "filter_IN_public",
        "        tcp dport 22 accept\n        udp dport 9000-9010 accept\n"
        "        ip6 daddr fe80::/64 udp dport 546 accept",
        _REJECT,
    )
    + _zone("filter_IN_docker", "", _ACCEPT)
    + _zone("filter_IN_internal", "        ip saddr 10.0.3.0/25 tcp dport { 22, 5432 } accept", _REJECT)
    + """
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002:c0a8::/32 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }

    chain filter_FORWARD_ZONES {
        iifname "docker0" oifname "eth0" accept
        iifname "docker0" oifname "docker0" accept
        iifname "br-*" goto filter_FWD_internal
        goto filter_FWD_public
    }

    chain filter_FWD_internal {
        oifname "eth0" tcp dport { 80, 443 } accept
        oifname "eth0" udp dport 53 accept
        reject with icmpx admin-prohibited
    }

    chain filter_FWD_public {
        reject with icmpx admin-prohibited
    }

    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002:c0a8::/32 } reject with icmpv6 addr-unreachable
    }
}
"""
)
