#!/bin/bash
# step: no-nat
# fails: not-seen
# Calls the pod on the same node.
k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$(kubectl get pod near -o jsonpath='{.status.podIP}'):8080/"
