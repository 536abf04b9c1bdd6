#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_doors() {
    until k8snet-lab exec client-host -- curl -sS --max-time 2 http://172.18.0.2:30080/; do
        sleep 0.2 # the pods may not be ready yet
    done
    k8snet-lab exec client-host -- curl -sS http://172.18.0.3:30080/
}

step_shut() {
    kubectl -n shop patch service web -p '{"spec": {"type": "ClusterIP"}}'
}

step_balancer() {
    kubectl -n shop patch service web -p '{"spec": {"type": "LoadBalancer"}}'
    until k8snet-lab exec client-host -- curl -sS --max-time 2 http://203.0.113.1/; do
        sleep 0.2
    done
}

step_local() {
    kubectl -n shop patch service web -p '{"spec": {"externalTrafficPolicy": "Local"}}'
}

step_local_port() {
    kubectl -n shop patch service web \
        -p '{"spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]}}'
}

step_each() {
    sed -i 's/^spec:$/spec:\n  clusterIP: None/' "$WORKSPACE/web-each.yaml"
    kubectl delete -f "$WORKSPACE/web-each.yaml" --ignore-not-found
    kubectl apply -f "$WORKSPACE/web-each.yaml"
}

step_alias() {
    kubectl -n shop create service externalname docs --external-name lets-ship-it.fastapi.svc.cluster.local
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve service-types
