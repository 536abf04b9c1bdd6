#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_refused() {
    kubectl -n fastapi patch service lets-ship-it --type=json -p '[{"op": "remove", "path": "/spec/selector/track"}]'
}

step_still_refused() {
    kubectl -n fastapi patch service lets-ship-it -p '{"spec": {"ports": [{"port": 8000, "targetPort": "http"}]}}'
}

step_sometimes() {
    k8snet-lab exec node2 -- iptables -D FORWARD -p tcp --dport 8000 -m comment --comment SEC-1187 -j DROP
}

step_one_node() {
    kubectl -n kube-system patch daemonset kube-proxy --type=json \
        -p '[{"op": "remove", "path": "/spec/template/spec/nodeSelector/kubernetes.io~1hostname"}]'
    kubectl -n kube-system rollout status daemonset/kube-proxy --timeout=60s
}

step_one_client() {
    k8snet-lab exec node1 -- conntrack -D -p udp --orig-port-src 5300 --orig-port-dst 53
}

step_no_names() {
    kubectl -n kube-system get service kube-dns -o yaml | sed 's/10\.96\.0\.53/10.96.0.10/' | kubectl replace --force -f -
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve night-shift
