#!/bin/bash
# step: by-address
# fails: not-seen
# Calls the Service, not a pod.
k8snet-lab exec default/client -- curl -sS -o /dev/null http://web/
