#!/bin/bash
# step: own
# fails: flows
# Forgets the destination port: scapy takes 80, where the Service has nothing.
sed -i 's|^syns = .*|syns = [IP(dst=SERVICE) / TCP(sport=20000 + n, flags="S") for n in range(30)]|' "$WORKSPACE/syn.py"
