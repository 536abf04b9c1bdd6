#!/bin/bash
# step: gone
# fails: not-seen
# Deletes one pod, and calls another one.
kubectl delete pod "$(kubectl get pods -l app=web -o jsonpath='{.items[0].metadata.name}')"
kubectl rollout status deployment/web --timeout=30s
k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$(kubectl get pods -l app=web -o jsonpath='{.items[0].status.podIP}'):8080/"
