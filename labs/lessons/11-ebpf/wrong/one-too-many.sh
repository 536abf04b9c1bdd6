#!/bin/bash
# step: another
# fails: endpoints
kubectl -n fastapi scale deployment lets-ship-it --replicas=5
kubectl -n fastapi rollout status deployment lets-ship-it --timeout=30s
