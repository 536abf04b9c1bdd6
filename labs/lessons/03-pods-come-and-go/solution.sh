#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

first_pod() { kubectl get pods -l app=web -o jsonpath="{.items[0].$1}"; }

step_owners() {
    k8snet-lab answer --later "$(kubectl get replicasets -l app=web -o jsonpath='{.items[0].metadata.name}')"
}

step_by_address() {
    k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$(first_pod status.podIP):8080/"
}

step_gone() {
    local pod ip
    pod=$(first_pod metadata.name) ip=$(first_pod status.podIP)
    kubectl delete pod "$pod"
    ! k8snet-lab exec default/client -- curl -sS --max-time 3 "http://$ip:8080/"
}

step_by_name() {
    kubectl rollout restart deployment/web
    # shellcheck disable=SC2016 # the pod's shell counts
    k8snet-lab exec default/client -- sh -c 'for i in $(seq 25); do curl -sS -o /dev/null http://web/; sleep 0.1; done'
    kubectl rollout status deployment/web --timeout=30s
}

step_what_stays() {
    k8snet-lab answer --later "$(kubectl get service web -o jsonpath='{.spec.clusterIP}')"
}

step_checkout() {
    kubectl set env deployment/checkout BACKEND=http://web/
    kubectl rollout status deployment/checkout --timeout=30s
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve pods-come-and-go
