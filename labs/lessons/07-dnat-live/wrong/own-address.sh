#!/bin/bash
# step: hairpin
# fails: wrong-answer
# What one would expect without masquerade.
k8snet-lab answer --later "$(kubectl get pod server -o jsonpath='{.status.podIP}')"
