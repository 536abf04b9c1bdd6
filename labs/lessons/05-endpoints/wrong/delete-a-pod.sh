#!/bin/bash
# step: not-ready
# fails: count
# Deletes a pod: the Deployment makes another, and there are three ready ones again.
pod=$(kubectl -n shop get pods -l app=cart -o jsonpath='{.items[0].metadata.name}')
kubectl -n shop delete pod "$pod" --wait --grace-period=1
kubectl -n shop rollout status deployment cart --timeout=20s
