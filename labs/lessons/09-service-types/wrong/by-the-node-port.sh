#!/bin/bash
# step: balancer
# fails: not-seen
# Calls the node port as before, and not the new address.
kubectl -n shop patch service web -p '{"spec": {"type": "LoadBalancer"}}'
port=$(kubectl -n shop get service web -o jsonpath='{.spec.ports[0].nodePort}')
until k8snet-lab exec client-host -- curl -sS --max-time 2 "http://172.18.0.3:$port/"; do
    sleep 0.2 # kube-proxy is at it
done
