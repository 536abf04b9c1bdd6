#!/bin/bash
# step: stale
# fails: addresses
# Restarts the agent of the node on which nothing is wrong.
kubectl -n kube-system delete pod -l k8s-app=service-lb --field-selector spec.nodeName=node2
kubectl -n kube-system rollout status daemonset service-lb --timeout=30s
