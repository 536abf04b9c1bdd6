#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_whom_a_pod_asks() {
    k8snet-lab answer --later "$(kubectl -n kube-system get pods -l k8s-app=kube-dns -o jsonpath='{.items[0].status.podIP}')"
}

step_a_name_of_your_own() {
    kubectl -n default create service clusterip orders --tcp=80
}

# All queries that the DNS servers have counted.
asked() {
    for pod in $(kubectl -n kube-system get pods -l k8s-app=kube-dns -o jsonpath='{.items[*].status.podIP}'); do
        k8snet-lab exec default/client -- curl -s "http://$pod:9153/metrics"
    done | awk '/^coredns_dns_requests_total/ { sum += $NF } END { print sum + 0 }'
}

step_count_them() {
    before=$(asked)
    k8snet-lab exec default/client -- curl -s -o /dev/null http://lets-ship-it.fastapi.svc.cluster.local:8000/
    k8snet-lab answer --later "$(($(asked) - before))"
}

step_fewer_queries() {
    kubectl patch deployment thrifty -p '{"spec":{"template":{"spec":{"dnsConfig":{"options":[{"name":"ndots","value":"2"}]}}}}}'
    kubectl rollout status deployment thrifty --timeout=20s
}

step_recursion() {
    status=$(k8snet-lab exec default/client -- dig +yaml @10.96.0.10 www.example.org | sed -n 's/^ *status: //p')
    k8snet-lab answer --later "$status"
}

step_refused_at_once() {
    kubectl -n kube-system scale deployment coredns --replicas=2
    kubectl -n kube-system rollout status deployment coredns --timeout=20s
}

step_silence() {
    node=$(kubectl get pod client -o jsonpath='{.spec.nodeName}')
    k8snet-lab exec "$node" -- iptables -D FORWARD ! -i eth0 -p udp --dport 53 -j DROP
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve its-always-dns
