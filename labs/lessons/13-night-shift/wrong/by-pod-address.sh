#!/bin/bash
# step: refused
# fails: no-answer
# Calls a pod itself: that works, and nobody else is helped.
ip=$(kubectl -n fastapi get pods -l app=lets-ship-it -o jsonpath='{.items[0].status.podIP}')
k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$ip:8000/"
