#!/bin/bash
# step: count
# fails: wrong-answer
# Answers with the number of chains, which stands beside it.
k8snet-lab answer --later "$(k8snet-lab exec node1 -- k8snet-trace explain 10.96.100.50:8000 -o json | jq '.passed.chains')"
