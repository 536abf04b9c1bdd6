"""The endpoints of Services, and the share of new connections that each gets, as the rules of a node have them.

Arguments: ClusterIP:PORT of each Service.
"""

import sys

from iptc.easy import dump_chain  # a chain of a legacy table: a list of rules, and each rule a dictionary


def service_chain(ip, port):
    """The chain to which KUBE-SERVICES sends TCP packets for this address and port."""
    for rule in dump_chain("nat", "KUBE-SERVICES"):
        if rule.get("dst") == f"{ip}/32" and rule.get("tcp") == {"dport": port}:
            return rule["target"]
    sys.exit(f"no rule in KUBE-SERVICES is about {ip}, TCP port {port}")


def endpoint(chain):
    """What the DNAT rule of a KUBE-SEP chain writes into a packet."""
    (found,) = (rule["target"]["DNAT"] for rule in dump_chain("nat", chain) if "DNAT" in rule["target"])
    return found["to-destination"]


for service in sys.argv[1:]:
    arriving = 1.0  # of all new connections to the Service, those that come as far as the next rule
    for rule in dump_chain("nat", service_chain(*service.split(":"))):
        if rule["target"].startswith("KUBE-SEP-"):
            probability = float(rule["statistic"]["probability"]) if "statistic" in rule else 1.0
            # The next line is not right yet: of how many does the rule take this part, and what is left for the others?
            share = probability
            print(f"{endpoint(rule['target'])} {share:.3f}")
