#!/bin/bash
# step: refused-at-once
# fails: count
# Brings one of the two pods back: names work, until its node does not.
kubectl -n kube-system scale deployment coredns --replicas=1
kubectl -n kube-system rollout status deployment coredns --timeout=20s
