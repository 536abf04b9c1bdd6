#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

ip_of() { kubectl get pod "$1" -o jsonpath='{.status.podIP}'; }

# The device of a node that is the other end of the cable of a pod.
cable_of() {
    local index
    index=$(k8snet-lab exec "default/$1" -- cat /sys/class/net/eth0/iflink)
    k8snet-lab exec "$2" -- sh -c "grep -lx $index /sys/class/net/*/ifindex" | cut -d/ -f5
}

step_cable() {
    k8snet-lab answer --later "$(cable_of client node1)"
}

step_no_nat() {
    k8snet-lab exec default/client -- curl -sS -o /dev/null "http://$(ip_of far):8080/"
}

step_agents() {
    k8snet-lab answer --later "$(k8snet-lab exec node2 -- curl -sS "http://$(ip_of far):8080/" | sed 's/.*"ip": "//; s/".*//')"
}

step_lost_pod() {
    local device
    device=$(cable_of far node2)
    k8snet-lab exec node2 -- ip link set "$device" up
    k8snet-lab exec node2 -- ip route replace "$(ip_of far)" dev "$device"
}

overlay_end() { # NODE, REMOTE, ADDRESS
    k8snet-lab exec "$1" -- sh -c "ip link show overlay0 >/dev/null 2>&1 ||
        ip link add overlay0 type vxlan id 42 dstport 4789 remote $2 dev eth0"
    k8snet-lab exec "$1" -- ip address replace "$3" dev overlay0
    k8snet-lab exec "$1" -- ip link set overlay0 up
}

step_overlay() {
    overlay_end node1 172.18.0.3 192.168.42.1/24
    overlay_end node2 172.18.0.2 192.168.42.2/24
    k8snet-lab exec node1 -- ip route replace "$(ip_of far)" via 192.168.42.2
    k8snet-lab exec node2 -- ip route replace "$(ip_of client)" via 192.168.42.1
}

step_packet_in_packet() {
    k8snet-lab answer --later "$(k8snet-lab exec node1 -- cat /sys/class/net/overlay0/mtu)"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve network-model
