#!/bin/bash
# step: sticky
# fails: few
# Sets the field, and sends nothing.
kubectl -n fastapi patch service lets-ship-it -p '{"spec": {"sessionAffinity": "ClientIP"}}'
until k8snet-lab exec node1 -- k8snet-trace explain 10.96.100.50:8000 -o json | jq -e .affinity_seconds; do
    sleep 0.2 # kube-proxy is at it
done
