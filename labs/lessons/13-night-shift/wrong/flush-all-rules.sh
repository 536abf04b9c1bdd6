#!/bin/bash
# step: sometimes
# fails: rules-in-place
# The rule is gone, and all of kube-proxy's in this table with it.
k8snet-lab exec node2 -- iptables -F
