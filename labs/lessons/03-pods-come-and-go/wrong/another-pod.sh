#!/bin/bash
# step: checkout
# fails: not-seen
# The address of a pod that lives today: it works until that one goes, too.
kubectl set env deployment/checkout "BACKEND=http://$(kubectl get pods -l app=web -o jsonpath='{.items[0].status.podIP}'):8080/"
kubectl rollout status deployment/checkout --timeout=30s
