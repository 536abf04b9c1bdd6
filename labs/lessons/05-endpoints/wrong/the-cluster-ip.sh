#!/bin/bash
# step: by-hand
# fails: no-answer
# Writes a ClusterIP into the slice: packets are translated once, and nobody has that address.
sed -i "s/SERVICE/legacy/; s/ADDRESS/10.96.100.50/" "$WORKSPACE/slice.yaml"
kubectl apply -f "$WORKSPACE/slice.yaml"
