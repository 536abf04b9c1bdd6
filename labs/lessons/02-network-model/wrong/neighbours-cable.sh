#!/bin/bash
# step: cable
# fails: wrong-answer
# All cables of a node end in a device number 2 of some pod; this one is the cable of near.
index=$(k8snet-lab exec default/near -- cat /sys/class/net/eth0/iflink)
k8snet-lab answer --later "$(k8snet-lab exec node1 -- sh -c "grep -lx $index /sys/class/net/*/ifindex" | cut -d/ -f5)"
