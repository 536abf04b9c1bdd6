#!/bin/bash
# step: explain
# fails: wrong-answer
# Counts from zero.
place=$(k8snet-lab exec node1 -- iptables -t nat -S KUBE-SERVICES | grep '^-A' | grep -n 'kube-dns:metrics' | cut -d: -f1)
k8snet-lab answer --later "$((place - 1))"
