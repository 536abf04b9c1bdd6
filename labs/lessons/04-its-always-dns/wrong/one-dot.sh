#!/bin/bash
# step: fewer-queries
# fails: too-many
# With ndots:1 the short name, which has one dot, is asked as it is first: the full name is cheap, the short one dearer.
kubectl patch deployment thrifty -p '{"spec":{"template":{"spec":{"dnsConfig":{"options":[{"name":"ndots","value":"1"}]}}}}}'
kubectl rollout status deployment thrifty --timeout=20s
