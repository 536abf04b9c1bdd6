#!/bin/bash
# step: silence
# fails: no-answer
# Replaces the DNS servers, to which the queries never come.
kubectl -n kube-system rollout restart deployment coredns
kubectl -n kube-system rollout status deployment coredns --timeout=20s
