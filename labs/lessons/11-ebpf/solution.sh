#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_call() {
    k8snet-lab exec default/client -- curl -sS -o /dev/null http://lets-ship-it.fastapi:8000/
}

step_maps() {
    k8snet-lab answer --later "$(k8snet-lab exec node1 -- bpftool -j map lookup pinned /sys/fs/bpf/k8snet/services \
        key 0 0 0 0 0 0 0 0 0 0 255 255 10 96 100 50 31 64 6 0 |
        jq '[.value[4:8][] | ltrimstr("0x") | explode | map(if . > 90 then . - 87 else . - 48 end) | .[0] * 16 + .[1]] |
            .[0] + 256 * .[1] + 65536 * .[2]')"
}

step_another() {
    kubectl -n fastapi scale deployment lets-ship-it --replicas=4
    kubectl -n fastapi rollout status deployment lets-ship-it --timeout=30s
}

step_stale() {
    kubectl -n kube-system delete pod -l k8s-app=service-lb --field-selector spec.nodeName=node1
    kubectl -n kube-system rollout status daemonset service-lb --timeout=30s
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve ebpf
