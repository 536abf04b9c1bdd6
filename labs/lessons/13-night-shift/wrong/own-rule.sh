#!/bin/bash
# step: one-node
# fails: kube-proxy
# A rule by hand, to a pod of tonight.
ip=$(kubectl -n fastapi get pods -l app=lets-ship-it -o jsonpath='{.items[0].status.podIP}')
k8snet-lab exec node1 -- iptables -t nat -I PREROUTING -d 10.96.100.50 -p tcp --dport 8000 -j DNAT --to-destination "$ip:8000"
