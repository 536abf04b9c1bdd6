#!/bin/bash
# step: one-node
# fails: no-answer
# New pods again, of which node1 does not hear either.
kubectl -n fastapi rollout restart deployment/lets-ship-it
kubectl -n fastapi rollout status deployment/lets-ship-it --timeout=30s
