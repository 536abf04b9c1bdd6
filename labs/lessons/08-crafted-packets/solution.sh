#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_sixty() {
    k8snet-lab exec node1 -- k8snet-trace probe fastapi/lets-ship-it:8000 --from default/client --count 60
}

step_own() {
    local syn='IP(dst=SERVICE) / TCP(sport=20000 + n, dport=PORT, flags="S")'
    sed -i "s|^syns = .*|syns = [$syn for n in range(30)]|" "$WORKSPACE/syn.py"
    k8snet-lab python default/client "$WORKSPACE/syn.py"
}

step_sticky() {
    kubectl -n fastapi patch service lets-ship-it -p '{"spec": {"sessionAffinity": "ClientIP"}}'
    until k8snet-lab exec node1 -- k8snet-trace explain 10.96.100.50:8000 -o json | jq -e .affinity_seconds; do
        sleep 0.2 # kube-proxy is at it
    done
    k8snet-lab exec node1 -- k8snet-trace probe fastapi/lets-ship-it:8000 --from default/client --count 60
}

step_memory() {
    local list chain
    list=$(k8snet-lab exec node1 -- grep -l 'src=10.244.0.' -r /proc/net/xt_recent/)
    chain=${list##*/}
    k8snet-lab answer --later "$(k8snet-lab exec node1 -- iptables-save -t nat |
        sed -n "s/^-A $chain .*--to-destination \(.*\):.*/\1/p")"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve crafted-packets
