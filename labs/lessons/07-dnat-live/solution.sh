#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_trace() {
    k8snet-lab exec default/client -- curl -sS -o /dev/null http://web/
}

step_capture() {
    local packet
    packet=$(k8snet-lab exec node1 -- sh -c 'kubectl exec server -- timeout 9 tcpdump -nqt -c 1 -i eth0 dst port 8000 2>/dev/null &
        sleep 2; kubectl exec client -- curl -so /dev/null http://web/; wait')
    k8snet-lab answer --later "$(sed -E 's/.* > (.*)\.([0-9]+): .*/\1:\2/' <<<"$packet")"
}

# The connection is open when this returns, and stays so for half a minute, or until the cluster ends.
step_conntrack() {
    read -r _ < <(setsid k8snet-lab exec default/client -- \
        bash -c 'exec 3<>/dev/tcp/10.96.80.80/80; echo open; exec sleep 30' </dev/null 2>/dev/null)
}

step_hairpin() {
    local answer
    answer=$(k8snet-lab exec default/server -- curl -sS http://web/)
    k8snet-lab answer --later "$(sed -E 's/.*"client": \{"ip": "([^"]*)".*/\1/' <<<"$answer")"
}

step_mend() {
    local rule
    rule=$(k8snet-lab exec node2 -- iptables -t nat -S POSTROUTING | sed -n 's/^-A \(.*pods-need-no-NAT.*\)/\1/p')
    # shellcheck disable=SC2086 # its words are arguments
    [ -z "$rule" ] || k8snet-lab exec node2 -- iptables -t nat -D $rule
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve dnat-live
