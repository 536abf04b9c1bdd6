#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

# rules CHAIN: what the table nat of node1 has in it.
rules() {
    k8snet-lab exec node1 -- iptables -t nat -S "$1"
}

service_chain() {
    rules KUBE-SERVICES | sed -n 's|.*-d 10\.96\.100\.50/32 .*-j \(KUBE-SVC-.*\)|\1|p'
}

step_path() {
    k8snet-lab answer --later "$(service_chain)"
}

step_last() {
    local endpoint_chain
    endpoint_chain=$(rules "$(service_chain)" | sed -n '$s/.*-j //p')
    k8snet-lab answer --later "$(rules "$endpoint_chain" | sed -n 's/.*--to-destination //p')"
}

step_python() {
    sed -i 's/^\( *\)share = probability$/\1share = arriving * probability\n\1arriving -= share/' "$WORKSPACE/chains.py"
}

step_fourth() {
    kubectl -n fastapi scale deployment/lets-ship-it --replicas=4
}

step_explain() {
    local place
    place=$(rules KUBE-SERVICES | grep '^-A' | grep -n 'kube-system/kube-dns:metrics' | cut -d: -f1)
    k8snet-lab answer --later "$place"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve kube-proxy
