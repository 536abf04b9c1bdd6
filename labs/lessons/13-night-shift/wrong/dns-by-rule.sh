#!/bin/bash
# step: no-names
# fails: address
# A rule by hand on the node of two pods.
ip=$(kubectl -n kube-system get pods -l k8s-app=kube-dns -o jsonpath='{.items[0].status.podIP}')
k8snet-lab exec node1 -- iptables -t nat -I PREROUTING -d 10.96.0.10 -p udp --dport 53 -j DNAT --to-destination "$ip:53"
