#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_behind_a_service() {
    k8snet-lab answer --later "$(kubectl -n shop get endpointslices -l kubernetes.io/service-name=cart \
        -o jsonpath='{.items[0].endpoints[0].targetRef.name}')"
}

step_not_ready() {
    kubectl -n shop exec deployment/cart -- touch /tmp/busy
}

step_no_match() {
    kubectl -n shop patch service checkout -p '{"spec":{"selector":{"app":"cart"}}}'
}

step_wrong_port() {
    kubectl -n shop patch service payment -p '{"spec":{"ports":[{"port":80,"targetPort":8000}]}}'
}

step_two_ports() {
    kubectl -n shop patch service blog -p '{"spec":{"ports":[{"port":80,"targetPort":"http"}]}}'
}

step_by_hand() {
    address=$(kubectl -n fastapi get pods -l app=lets-ship-it -o jsonpath='{.items[0].status.podIP}')
    sed -i "s/SERVICE/legacy/; s/ADDRESS/$address/" "$WORKSPACE/slice.yaml"
    kubectl apply -f "$WORKSPACE/slice.yaml"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve endpoints
