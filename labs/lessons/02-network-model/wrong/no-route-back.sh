#!/bin/bash
# step: overlay
# fails: device
# The question goes through the overlay, the answer does not.
k8snet-lab exec node1 -- ip link add overlay0 type vxlan id 42 dstport 4789 remote 172.18.0.3 dev eth0
k8snet-lab exec node2 -- ip link add overlay0 type vxlan id 42 dstport 4789 remote 172.18.0.2 dev eth0
k8snet-lab exec node1 -- ip address add 192.168.42.1/24 dev overlay0
k8snet-lab exec node2 -- ip address add 192.168.42.2/24 dev overlay0
k8snet-lab exec node1 -- ip link set overlay0 up
k8snet-lab exec node2 -- ip link set overlay0 up
k8snet-lab exec node1 -- ip route add "$(kubectl get pod far -o jsonpath='{.status.podIP}')" via 192.168.42.2
