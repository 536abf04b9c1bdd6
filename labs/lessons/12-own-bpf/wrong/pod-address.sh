#!/bin/bash
# step: service
# fails: wrong-answer
# Answers with the address of a pod, where the packets go.
k8snet-lab answer --later "$(kubectl -n fastapi get endpoints lets-ship-it -o jsonpath='{.subsets[0].addresses[0].ip}')"
