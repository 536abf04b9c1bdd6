#!/bin/bash
# step: sometimes
# fails: rule
# A rule before the rule: what was dropped is accepted, until the next one cleans up.
k8snet-lab exec node2 -- iptables -I FORWARD -p tcp --dport 8000 -j ACCEPT
