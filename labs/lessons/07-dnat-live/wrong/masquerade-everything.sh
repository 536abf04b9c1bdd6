#!/bin/bash
# step: mend
# fails: masquerade
# The server reaches itself again, but sees nobody's own address any more.
k8snet-lab exec node2 -- iptables -t nat -I POSTROUTING -j MASQUERADE
