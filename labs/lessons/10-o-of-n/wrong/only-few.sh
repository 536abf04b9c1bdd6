#!/bin/bash
# step: measure
# fails: services
# Ten Services tell nothing about how it grows.
k8snet-lab bench scale --quick --flows-only --max 10 --datapath iptables-nft --datapath ebpf --output scale
