#!/bin/bash
# step: one-node
# fails: no-answer
# New pods again, of which node1 does not hear either.
sleep 1.1  # kubectl refuses to restart twice within a second, as when this is tried again
kubectl -n fastapi rollout restart deployment/lets-ship-it
kubectl -n fastapi rollout status deployment/lets-ship-it --timeout=30s
