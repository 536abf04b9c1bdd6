#!/bin/bash
# step: last
# fails: wrong-answer
# The endpoint of the first rule, not of the last.
first=$(k8snet-lab exec node1 -- iptables -t nat -S | sed -n 's/.*lets-ship-it:http -> \([^"]*\)".*/\1/p' | head -1)
k8snet-lab answer --later "$first"
