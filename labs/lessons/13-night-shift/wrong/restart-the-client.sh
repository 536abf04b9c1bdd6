#!/bin/bash
# step: one-client
# fails: new
# A new pod has a new address, and so a new flow. What the old one held in memory is lost.
sleep 1.1  # the age of pods is told in whole seconds, and this one was made a moment ago
kubectl delete pod meter
kubectl apply -f "$LESSON/manifests/meter.yaml"
kubectl wait --for=condition=Ready pod/meter --timeout=20s
