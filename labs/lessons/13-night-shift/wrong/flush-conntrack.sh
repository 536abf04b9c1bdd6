#!/bin/bash
# step: one-client
# fails: flushed
# The entry is gone, and those of all other flows with it.
k8snet-lab exec node1 -- conntrack -F
kubectl wait --for=condition=Ready pod/meter --timeout=20s
