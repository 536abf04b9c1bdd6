#!/bin/bash
# step: call
# fails: not-seen
# Calls the Service from a node, not from the pod.
k8snet-lab exec node1 -- curl -sS -o /dev/null http://10.96.100.50:8000/
