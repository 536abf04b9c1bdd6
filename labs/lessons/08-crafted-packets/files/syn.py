"""SYNs of our own to a Service: who answers, and from how far away."""

from collections import Counter

# Tutorials write `from scapy.all import …`, which brings all that scapy has, and takes longer.
from scapy.layers.inet import IP, TCP
from scapy.sendrecv import sr

SERVICE, PORT = "10.96.100.50", 8000
EXAMPLE = IP(dst="10.96.0.10") / TCP(sport=20000, dport=53, flags="S")  # to the DNS Service

syns = []  # 30 packets to SERVICE and PORT, each with a source port of its own

if not syns:
    raise SystemExit("there is nothing to send: syns is empty")
answered, unanswered = sr(syns, timeout=2, verbose=False)
print(f"{len(answered)} of {len(syns)} SYNs were answered")
for address, count in Counter(answer[IP].src for _, answer in answered).items():
    print(f"from {address}: {count}")
for ttl, count in sorted(Counter(answer[IP].ttl for _, answer in answered).items()):
    print(f"with TTL {ttl}: {count}")
