#!/bin/bash
# step: lost-pod
# fails: no-answer
# Brings the cable up, and overlooks that the route went with it.
k8snet-lab exec node2 -- sh -c 'for device in /sys/class/net/veth*; do ip link set "${device##*/}" up; done'
