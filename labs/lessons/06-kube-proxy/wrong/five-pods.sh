#!/bin/bash
# step: fourth
# fails: count
# Four more than none would have been enough.
kubectl -n fastapi scale deployment/lets-ship-it --replicas=5
kubectl -n fastapi rollout status deployment/lets-ship-it --timeout=20s
