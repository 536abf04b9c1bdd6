#!/bin/bash
# step: by-hand
# fails: no-endpoints
# Labels the slice with the Service that the pods have already: nothing stands behind legacy.
address=$(kubectl -n fastapi get pods -l app=lets-ship-it -o jsonpath='{.items[0].status.podIP}')
sed -i "s/SERVICE/lets-ship-it/; s/ADDRESS/$address/" "$WORKSPACE/slice.yaml"
kubectl apply -f "$WORKSPACE/slice.yaml"
