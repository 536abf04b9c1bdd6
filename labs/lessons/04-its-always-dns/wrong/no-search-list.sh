#!/bin/bash
# step: fewer-queries
# fails: no-answer
# Drops what the kubelet writes: without a search list the full name is cheap, and the short one is not found.
kubectl patch deployment thrifty -p '{"spec":{"template":{"spec":{"dnsPolicy":"None","dnsConfig":{"nameservers":["10.96.0.10"]}}}}}'
kubectl patch deployment thrifty -p '{"spec":{"template":{"spec":{"dnsConfig":{"options":[{"name":"ndots","value":"1"}]}}}}}'
kubectl rollout status deployment thrifty --timeout=20s
