#!/bin/bash
# step: lost-pod
# fails: no-answer
# Brings the cable up, and overlooks that the route went with it.
# shellcheck disable=SC2016 # the node's shell counts
k8snet-lab exec node2 -- sh -c 'for device in /sys/class/net/veth*; do ip link set "${device##*/}" up; done'
