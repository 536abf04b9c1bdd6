#!/bin/bash
# step: call
# fails: not-seen
# Calls a pod itself: there is nothing to translate.
ip=$(kubectl -n fastapi get endpoints lets-ship-it -o jsonpath='{.subsets[0].addresses[0].ip}')
k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$ip:8000/"
