#!/bin/bash
# step: silence
# fails: no-answer
# Replaces the DNS servers, to which the queries never come.
sleep 1.1  # kubectl refuses to restart twice within a second, as when this is tried again
kubectl -n kube-system rollout restart deployment coredns
kubectl -n kube-system rollout status deployment coredns --timeout=20s
